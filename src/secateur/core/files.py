"""Write files so that at any moment the old content or the new is there, whole."""

import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from secateur.core.errors import SecateurError


@contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Give a temporary path in the same folder, which takes the place of `path` if all goes well.

    The file is on the disk (fsync) before it is renamed. Where anything fails, the temporary
    file is removed and what was at `path` stays.

    Args:
        path: what to write; its folder is made where it is missing.

    Yields:
        Where to write instead.

    Raises:
        SecateurError: the disk is full, or the place cannot be written to.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        if path.is_dir():
            raise SecateurError(f"'{path}' is a folder: give the name of a file to write.")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        mode = temporary.stat().st_mode  # as the umask wants it; some writers make private files
        yield temporary
        temporary.chmod(mode)
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise SecateurError(_words(path, error)) from error
    finally:
        with suppress(OSError):  # there may not even be a folder
            temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: str | Path, known_by: str) -> Iterator[Path]:
    """Give a temporary folder beside `path`, which takes its place if all goes well.

    Everything is on the disk (fsync) before it is renamed. Where anything fails, the temporary folder
    is removed and what was at `path` stays.

    Args:
        path: the folder to write; the one it is in is made where it is missing.
        known_by: a file that a folder must hold to be replaced, unless it is empty.

    Yields:
        Where to write instead.

    Raises:
        SecateurError: the disk is full, the place cannot be written to, or something else is there.
    """
    path = Path(os.path.abspath(path))
    temporary, old = (path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part") for _ in range(2))
    try:
        held = path.exists()
        if held and not (path.is_dir() and ((path / known_by).is_file() or not any(path.iterdir()))):
            raise SecateurError(
                f"'{path}' exists and is no earlier checkpoint (it holds no {known_by}): give another folder."
            )
        temporary.mkdir(parents=True)
        yield temporary
        for entry in (*temporary.rglob("*"), temporary):
            _sync(entry)
        if held:
            path.rename(old)
        temporary.rename(path)
        _sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise SecateurError(_words(path, error)) from error
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        for remains in (temporary, old):
            shutil.rmtree(remains, ignore_errors=True)


def _words(path: Path, error: Exception) -> str:
    """Say why something cannot be written."""
    if _is_full(error):
        return (
            f"no space left on the disk to write '{path}': make room and try again; what was "
            "there before is whole."
        )
    return f"cannot write '{path}' ({error}): give another place."


def _is_full(error: Exception) -> bool:
    """Say whether a disk or a quota is full; safetensors tells so in words only."""
    codes = (errno.ENOSPC, errno.EDQUOT)
    return getattr(error, "errno", None) in codes or any(f"(os error {code})" in str(error) for code in codes)


def _sync(path: Path) -> None:
    """Wait until a file or a folder's entries are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
