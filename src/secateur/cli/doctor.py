"""`secateur doctor`: is everything there?"""

import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from secateur.recipes.files import ASSETS_VARIABLE

_NEEDED = (
    "torch", "numpy", "numba", "safetensors", "jaxtyping", "pydantic", "cyclopts", "rich", "matplotlib",
    "jinja2", "scikit-learn", "pillow", "tomli-w",
)  # fmt: skip
_ASSETS = ("data/fashion-mnist", "models/garment-classifier.pt")
_ROOM = 2**30
# A finding: whether it is well, what it is about, what was found, and what to do where it is not well.
Finding = tuple[bool, str, str, str]


def run_doctor(assets: str | None) -> int:
    """Print what was found.

    Args:
        assets: the folder of real data and trained models; None: what SECATEUR_ASSETS names.

    Returns:
        The status: 1 where something is wrong.
    """
    table = Table(box=None, pad_edge=False, show_header=False)
    advice = []
    for look in (_python, _packages, _machine, _torch, _numba, _disk, lambda: _assets(assets)):
        for well, subject, found, remedy in _safely(look):
            table.add_row("[green]ok" if well else "[red]!!", subject, found)
            if not well:
                advice.append(remedy)
    console = Console()
    console.print(table, highlight=False)
    for remedy in advice:
        console.print(f"[yellow]to do: {remedy}", highlight=False, soft_wrap=True)
    console.print("[green]all is well" if not advice else f"[red]{len(advice)} to mend")
    return 1 if advice else 0


def _safely(look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """Turn a failure of a look into a finding: a doctor must not fall ill."""
    try:
        return list(look())
    except Exception as error:
        name = getattr(look, "__name__", "check").strip("_")
        return [
            (
                False,
                name,
                f"{type(error).__name__}: {error}",
                "install Secateur again, in a fresh environment.",
            )
        ]


def _python() -> Iterator[Finding]:
    """Look at the interpreter."""
    yield (
        sys.version_info >= (3, 11),
        "python",
        f"{platform.python_version()} in {sys.prefix}",
        "install Python 3.11 or newer and make a new environment with it.",
    )


def _packages() -> Iterator[Finding]:
    """Look for what Secateur depends on."""
    found, missing = [f"secateur {version('secateur')}"], []
    for name in _NEEDED:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            missing.append(name)
    words = ", ".join(found) if not missing else f"missing: {', '.join(missing)}"
    yield not missing, "packages", words, f"pip install {' '.join(missing)}"


def _machine() -> Iterator[Finding]:
    """Look at cores and memory."""
    total, free = _memory()
    words = f"{platform.machine()}, {os.cpu_count()} cores"
    if total:
        words += f", {free / 2**30:.1f} of {total / 2**30:.1f} GiB of memory free"
    yield (
        not total or free > _ROOM // 2,
        "machine",
        words,
        "less than half a GiB of memory is free: end other programs, or use smaller batches.",
    )


def _memory() -> tuple[int, int]:
    """Give total and available memory in bytes; zeros where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return tuple(int(lines[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))  # type: ignore[return-value]
    except (OSError, KeyError, ValueError):
        return 0, 0


def _torch() -> Iterator[Finding]:
    """Look at torch, its threads and its devices."""
    import torch

    words = f"{torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        words += f", GPU: {', '.join(names)}"
    else:
        words += ", no GPU (not needed)"
    ones = torch.ones(64, 64)
    yield bool((ones @ ones == 64).all()), "torch", words, "torch multiplies wrongly: install it again."


def _numba() -> Iterator[Finding]:
    """Look whether compiled solvers can be cached, so that they are compiled once."""
    from secateur.solvers import kernels

    beside = Path(kernels.__file__).parent
    fixed = os.environ.get("NUMBA_CACHE_DIR")
    place = Path(fixed) if fixed else beside / "__pycache__"
    ready = any(place.glob("**/*.nbi")) if place.exists() else False
    writable = os.access(place if place.exists() else place.parent, os.W_OK)
    words = (
        f"{'solvers are compiled' if ready else 'solvers will be compiled at first use'}, cached in {place}"
    )
    yield writable, "numba", words, f"{place} cannot be written: set NUMBA_CACHE_DIR to a folder that can."


def _disk() -> Iterator[Finding]:
    """Look at the room for runs, here and for temporary files."""
    here = shutil.disk_usage(Path.cwd()).free
    temporary = shutil.disk_usage(tempfile.gettempdir()).free
    yield (
        min(here, temporary) > _ROOM,
        "disk",
        f"{here / 2**30:.1f} GiB free here, {temporary / 2**30:.1f} GiB for temporary files",
        "less than 1 GiB is free: make room, or choose another folder with --out.",
    )
    yield (
        os.access(Path.cwd(), os.W_OK),
        "folder",
        str(Path.cwd()),
        "this folder cannot be written: use --out.",
    )


def _assets(given: str | None) -> Iterator[Finding]:
    """Look for the data of the garment recipes, which nothing else needs."""
    folder = given or os.environ.get(ASSETS_VARIABLE)
    if not folder:
        yield True, "assets", f"{ASSETS_VARIABLE} is not set (only the garment recipes need it)", ""
        return
    missing = [name for name in _ASSETS if not (Path(folder).expanduser() / name).exists()]
    yield (
        not missing,
        "assets",
        folder if not missing else f"{folder} lacks {', '.join(missing)}",
        f"give the folder with {' and '.join(_ASSETS)} by --assets or {ASSETS_VARIABLE}.",
    )
