"""Where pictures lie: in a folder, or in a zip file, which is read without being unpacked."""

import zipfile
import zlib
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

from secateur.core.errors import SecateurError
from secateur.tasks.pictures import is_picture

_IGNORED = "__MACOSX"
# What zipfile raises where a member is damaged, packed in a way it does not know, or encrypted.
_UNREADABLE = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)


class Shelf(ABC):
    """Folders with pictures in them; a place is a path from the top, ``""`` the top itself."""

    @abstractmethod
    def folders(self, place: str = "") -> list[str]:
        """List the folders in a place, hidden ones aside.

        Args:
            place: where.

        Returns:
            Their names, sorted.
        """

    def top(self) -> str:
        """Look through folders that hold nothing but one folder, in which there are others.

        Returns:
            The place where the folders of classes, or of parts, are.
        """
        place = ""
        while len(inside := self.folders(place)) == 1:
            deeper = f"{place}/{inside[0]}" if place else inside[0]
            if not self.folders(deeper):
                break
            place = deeper
        return place

    @abstractmethod
    def pictures(self, place: str) -> list[str]:
        """List the pictures in a place and in all folders below it.

        Args:
            place: where.

        Returns:
            Their places, sorted.
        """

    @abstractmethod
    def open(self, place: str) -> Any:
        """Open a picture.

        Args:
            place: of the picture.

        Returns:
            A file, or the path of one.
        """

    @abstractmethod
    def name(self, place: str = "") -> str:
        """Say how messages name a place.

        Args:
            place: a folder or a picture.

        Returns:
            Its path, in quotation marks.
        """


class Folder(Shelf):
    """A folder on the disk."""

    def __init__(self, root: Path) -> None:
        """Note the folder.

        Args:
            root: the folder.
        """
        self._root = root

    def folders(self, place: str = "") -> list[str]:
        """List the folders in a place, hidden ones aside.

        Args:
            place: where.

        Returns:
            Their names, sorted.
        """
        entries = (self._root / place).iterdir()
        return sorted(entry.name for entry in entries if not _is_hidden(entry.name) and entry.is_dir())

    def pictures(self, place: str) -> list[str]:
        """List the pictures in a place and in all folders below it.

        Args:
            place: where.

        Returns:
            Their places, sorted.
        """
        found = sorted(
            path for path in (self._root / place).rglob("*") if is_picture(path) and path.is_file()
        )
        return [path.relative_to(self._root).as_posix() for path in found]

    def open(self, place: str) -> Any:
        """Give the path of a picture.

        Args:
            place: of the picture.

        Returns:
            The path.
        """
        return self._root / place

    def name(self, place: str = "") -> str:
        """Say how messages name a place.

        Args:
            place: a folder or a picture.

        Returns:
            Its path, in quotation marks.
        """
        return f"'{self._root / place}'"


class Archive(Shelf):
    """A zip file."""

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        """List what is in the file.

        Args:
            path: the file.
            archive: the same, opened.
        """
        self._path, self._archive = path, archive
        names = (PurePosixPath(name.replace("\\", "/")).parts for name in archive.namelist())
        visible = zip(names, archive.infolist(), strict=True)
        self._members = {parts: info for parts, info in visible if not any(map(_is_hidden, parts))}
        self._sorted = sorted(self._members)

    def folders(self, place: str = "") -> list[str]:
        """List the folders in a place, hidden ones aside.

        Args:
            place: where.

        Returns:
            Their names, sorted.
        """
        depth = len(PurePosixPath(place).parts)
        deeper = (parts for parts in self._below(place) if len(parts) > depth)
        return sorted({p[depth] for p in deeper if len(p) > depth + 1 or self._members[p].is_dir()})

    def pictures(self, place: str) -> list[str]:
        """List the pictures in a place and in all folders below it.

        Args:
            place: where.

        Returns:
            Their places, sorted.
        """
        files = (PurePosixPath(*parts) for parts in self._below(place) if not self._members[parts].is_dir())
        return [str(file) for file in files if is_picture(file)]

    def open(self, place: str) -> Any:
        """Read a picture's file into memory.

        Args:
            place: of the picture.

        Returns:
            The file.

        Raises:
            SecateurError: it cannot be unpacked.
        """
        try:
            return BytesIO(self._archive.read(self._members[PurePosixPath(place).parts]))
        except _UNREADABLE as error:
            raise SecateurError(
                f"cannot unpack {self.name(place)} ({error}): the zip file is damaged or encrypted; fetch it "
                "anew, or unpack it and give the folder."
            ) from error

    def name(self, place: str = "") -> str:
        """Say how messages name a place.

        Args:
            place: a folder or a picture.

        Returns:
            Its path, in quotation marks.
        """
        return f"'{self._path / place}'"

    def _below(self, place: str) -> Iterator[tuple[str, ...]]:
        """Go through what lies in a place and below it, in order."""
        above = PurePosixPath(place).parts
        for at in range(bisect_left(self._sorted, above), len(self._sorted)):
            parts = self._sorted[at]
            if parts[: len(above)] != above:
                return
            yield parts


@contextmanager
def open_shelf(path: str) -> Iterator[Shelf]:
    """Open a folder of pictures, or a zip file of such a folder.

    Args:
        path: of either.

    Yields:
        The shelf.

    Raises:
        SecateurError: there is neither, or the file is no zip file that can be read.
    """
    place = Path(path).expanduser()
    if place.is_dir():
        yield Folder(place)
        return
    if not place.is_file():
        raise SecateurError(
            f"there is no folder '{path}': give the folder that holds one folder a class, or a .zip of it."
        )
    try:
        archive = zipfile.ZipFile(place)
    except (zipfile.BadZipFile, OSError) as error:
        what = (
            "cannot read the zip file" if place.suffix.lower() == ".zip" else "pictures cannot be read from"
        )
        raise SecateurError(
            f"{what} '{path}' ({str(error).rstrip('.')}): fetch it anew, or give the folder that holds one "
            "folder a class."
        ) from error
    with archive:
        yield Archive(place, archive)


def _is_hidden(name: str) -> bool:
    """Say whether a file or folder is one that people do not see."""
    return name.startswith(".") or name == _IGNORED
