"""What several benchmarks share: the Garment Classifier, a measured run, tables, and marked pages.

Imported by the others, which are run from anywhere as `python benchmarks/NAME.py`; SECATEUR_ASSETS
names the folder with data/fashion-mnist/ (the four official gzip files) and models/garment-classifier.pt.
"""

import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from secateur import Classification, SecateurError, prune
from secateur.core.allocation import Allocation
from secateur.core.device import has_fast_bfloat16
from secateur.models import GarmentClassifier
from secateur.pruners import Pruner
from secateur.tasks import Idx

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
DENSITY = 0.1

Run = dict[str, Any]


def assets() -> Path:
    """Find the folder with data and model."""
    folder = os.environ.get("SECATEUR_ASSETS")
    if not folder:
        raise SecateurError("set SECATEUR_ASSETS to the folder that holds data/fashion-mnist and models/.")
    return Path(folder)


def garment_task() -> Classification:
    """Load Fashion-MNIST."""
    return Classification.from_source(Idx(str(assets() / "data" / "fashion-mnist"), flat=True))


def garment_model() -> nn.Module:
    """Load the trained Garment Classifier anew: a run changes the model it is given."""
    return GarmentClassifier(str(assets() / "models" / "garment-classifier.pt")).build()


def measure(
    task: Classification,
    pruner: Pruner,
    budget: str | None,
    seed: int,
    density: float = DENSITY,
    allocation: Allocation | None = None,
) -> Run:
    """Prune once and keep the figures.

    The seconds are those of the run's clock, first evaluation to last.
    """
    run = prune(
        garment_model(), task, pruner, density=density, allocation=allocation, budget=budget, seed=seed
    )
    seconds, steps = run.report["seconds"]["total"], run.report["steps"]
    return run.report["evaluation"]["pruned"] | {"seconds": seconds, "steps": steps, "seed": seed}


def spread(values: Sequence[float], digits: int) -> str:
    """Write mean ± standard deviation; of one value, the value."""
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def results(runs: Sequence[Run]) -> list[str]:
    """Write test accuracy, test loss and the number of seeds."""
    accuracy = spread([100 * run["accuracy"] for run in runs], 2)
    return [accuracy, spread([run["loss"] for run in runs], 3), str(len(runs))]


def mean_seconds(runs: Sequence[Run]) -> str:
    """Write the mean seconds of a run."""
    return f"{statistics.mean(run['seconds'] for run in runs):.1f}"


def row(cells: Iterable[str]) -> str:
    """Write one line of a table in Markdown."""
    return "| " + " | ".join(cells) + " |"


def table(head: Sequence[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Write a table in Markdown."""
    return [row(head), row(["---"] * len(head)), *map(row, rows)]


def parted(page: Path, mark: str) -> tuple[str, str]:
    """Give what a page says before and after a table that stands between two marks."""
    parts = page.read_text(encoding="utf-8").split(f"<!-- benchmarks/{mark} -->")
    if len(parts) != 3:
        raise SecateurError(
            f"{page} must hold the line '<!-- benchmarks/{mark} -->' twice, not {len(parts) - 1} times: "
            "the table is put between the two."
        )
    return parts[0], parts[2]


def refresh(page: Path, mark: str, lines: Sequence[str]) -> None:
    """Replace the table that a page shows between two marks."""
    before, after = parted(page, mark)
    line = f"<!-- benchmarks/{mark} -->"
    page.write_text("\n".join((before + line, *lines, line + after)), encoding="utf-8")


def machine() -> dict[str, Any]:
    """Describe what the numbers were measured on."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cpu": _cpu_name(),
        "fast bfloat16": has_fast_bfloat16(torch.device("cpu")),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _cpu_name() -> str:
    """Ask Linux for the name of the processor, and elsewhere Python."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
