"""Write files so that at any moment the old content or the new is there, whole."""

import errno
import os
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
        if _is_full(error):
            raise SecateurError(
                f"no space left on the disk to write '{path}': make room and try again; what was "
                "there before is whole."
            ) from error
        raise SecateurError(f"cannot write '{path}' ({error}): give another place.") from error
    finally:
        with suppress(OSError):  # there may not even be a folder
            temporary.unlink(missing_ok=True)


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
