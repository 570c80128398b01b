"""Set-up of all tests: run-time checks of types and shapes, threads, and the assets."""

import importlib
import os
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
# numba compiles the functions in there, and cannot compile the wrapper of a run-time check.
UNCHECKED = "secateur.solvers.kernels"


def checked_modules() -> list[str]:
    """List the modules whose annotations are checked at run time.

    The hook takes prefixes, so the packages above an unchecked module are left out, and the
    modules in them are listed one by one.
    """
    paths = [p.relative_to(SOURCE).with_suffix("").parts for p in sorted(SOURCE.rglob("*.py"))]
    names = {".".join(parts[:-1] if parts[-1] == "__init__" else parts) for parts in paths}
    above = {"secateur", "secateur.solvers"}
    return sorted(name for name in names - above if not name.startswith(UNCHECKED))


WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
THREADS = max(1, (os.cpu_count() or 1) // WORKERS)
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
    os.environ.setdefault(variable, str(THREADS))  # for the processes that tests start, too

# Before anything imports secateur: what is imported earlier goes unchecked.
importlib.import_module("jaxtyping").install_import_hook(checked_modules(), "beartype.beartype")
importlib.import_module("torch").set_num_threads(THREADS)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests that need a GPU where there is none."""
    if importlib.import_module("torch").cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(scope="session")
def assets() -> Path:
    """Give the folder of real data and trained models, or skip the test."""
    folder = os.environ.get("SECATEUR_ASSETS")
    if not folder:
        pytest.skip("SECATEUR_ASSETS is not set: it names the folder of real data and trained models")
    if not Path(folder).is_dir():
        pytest.skip(f"SECATEUR_ASSETS names {folder}, which is not a folder")
    return Path(folder).resolve()
