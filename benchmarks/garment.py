"""The Garment Classifier at density 0.1 in every layer: start, published settings, default method.

    SECATEUR_ASSETS=... python benchmarks/garment.py [start | published | default | all] [--write]

Prints a table; with --write it also replaces the README's table and figure (docs/figures). All
methods run one after the other in one process, seeds 0, 1, ..., each on a freshly loaded model;
the seconds are those of the run's clock (first evaluation to last), without loading and compiling.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from secateur import ICBS, Classification, OneShot, SecateurError, evaluate, prune
from secateur.core.events import Event, Stepped
from secateur.models import GarmentClassifier
from secateur.pruners import Pruner
from secateur.scores import Gradient, Random, Wanda
from secateur.tasks import Idx

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
DENSITY = 0.1


def assets() -> Path:
    """Find the folder with data and model."""
    folder = os.environ.get("SECATEUR_ASSETS")
    if not folder:
        raise SecateurError("set SECATEUR_ASSETS to the folder that holds data/fashion-mnist and models/.")
    return Path(folder)


def measure(task: Classification, pruner: Pruner, budget: str | None, seed: int) -> dict[str, Any]:
    """Prune once and keep the figures."""
    model = GarmentClassifier(str(assets() / "models" / "garment-classifier.pt")).build()
    report = prune(model, task, pruner, density=DENSITY, budget=budget, seed=seed).report
    seconds = report["seconds"]["total"]
    return report["evaluation"]["pruned"] | {"seconds": seconds, "steps": report["steps"], "seed": seed}


def trace(task: Classification, pruner: Pruner, seconds: float, budget: str) -> list[tuple[float, float]]:
    """Prune once more and evaluate after every step, the time for that taken off the clock."""
    model = GarmentClassifier(str(assets() / "models" / "garment-classifier.pt")).build()
    points: list[tuple[float, float]] = []
    spent, latest = [0.0], [0.0]

    def look(event: Event) -> None:
        at = latest[0] = event.elapsed - spent[0]
        if isinstance(event, Stepped) and event.flips and at <= seconds:
            found = evaluate(model, task)
            spent[0] += found["seconds"]
            points.append((at, found["loss"]))

    prune(
        model, task, pruner, density=DENSITY, budget=budget, seed=0, listeners=[look],
        stop=lambda: latest[0] > 0.97 * seconds,
    )  # fmt: skip
    return points


def row(name: str, runs: list[dict[str, Any]]) -> str:
    """Write one line of the table: mean and standard deviation over the seeds."""

    def spread(key: str, scale: float, digits: int) -> str:
        values = [run[key] * scale for run in runs]
        mean = f"{statistics.mean(values):.{digits}f}"
        return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean

    seconds = statistics.mean(run["seconds"] for run in runs)
    accuracy, loss = spread("accuracy", 100, 2), spread("loss", 1, 3)
    return f"| {name} | {seconds:.1f} | {runs[0]['steps']} | {accuracy} | {loss} | {len(runs)} |"


def draw(traces: dict[str, list[tuple[float, float]]], start: float, dense: float, path: Path) -> None:
    """Draw the test loss against the seconds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    for name, points in traces.items():
        axes.plot(
            *zip((0.0, start), *points, strict=True), marker=".", markersize=4, linewidth=1.4, label=name
        )
    axes.axhline(start, color="grey", linestyle=":", linewidth=1, label="magnitude, one shot")
    axes.axhline(dense, color="grey", linestyle="--", linewidth=1, label="dense model")
    axes.set(xlabel="seconds (2 cores)", ylabel="test loss, nats a sample")
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)


def refresh(page: Path, table: str, lines: list[str]) -> None:
    """Replace the table that a page shows between two marks."""
    mark = f"<!-- benchmarks/{table} -->"
    before, _, after = page.read_text(encoding="utf-8").split(mark)
    page.write_text("\n".join((before + mark, *lines, mark + after)), encoding="utf-8")


def main() -> None:
    """Run what was asked for and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("what", nargs="?", default="all", choices=["start", "published", "default", "all"])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=60, help="budget of the default method")
    parser.add_argument("--write", action="store_true", help="replace the README's table and figure")
    chosen = parser.parse_args()
    methods: dict[str, tuple[str, Callable[[], Pruner], str | None, int]] = {
        "random, one shot": ("start", lambda: OneShot(Random()), None, 1),
        "gradient, one shot": ("start", lambda: OneShot(Gradient()), None, 1),
        "Wanda per output, one shot": ("start", lambda: OneShot(Wanda()), None, 1),
        "magnitude, one shot": ("start", lambda: OneShot(), None, 1),
        "iCBS as published, 30 steps": ("published", ICBS.published, "30steps", chosen.seeds),
        f"iCBS by stages (default), {chosen.seconds // 6} s": (
            "default", ICBS, f"{chosen.seconds // 6}s", chosen.seeds
        ),
        f"iCBS by stages (default), {chosen.seconds} s": (
            "default", ICBS, f"{chosen.seconds}s", chosen.seeds
        ),
    }  # fmt: skip
    folder = str(assets() / "data" / "fashion-mnist")
    task = Classification.from_source(Idx(folder, flat=True))
    ICBS().warm_up()
    ICBS.published().warm_up()
    dense: nn.Module = GarmentClassifier(str(assets() / "models" / "garment-classifier.pt")).build()
    found = {"dense": [evaluate(dense, task) | {"steps": 0, "seconds": 0.0}]}
    lines = [
        "| method | seconds | steps | test accuracy, % | test loss | seeds |",
        "|---|---|---|---|---|---|",
    ]
    lines.append(row("dense model", found["dense"]))
    print("\n".join(lines), flush=True)
    for name, (group, make, budget, seeds) in methods.items():
        if chosen.what in (group, "all"):
            found[name] = [measure(task, make(), budget, seed) for seed in range(seeds)]
            lines.append(row(name, found[name]))
            print(lines[-1], flush=True)
    if chosen.write and chosen.what == "all":
        FIGURES.mkdir(parents=True, exist_ok=True)
        start, floor = found["magnitude, one shot"][0]["loss"], found["dense"][0]["loss"]
        traces = {
            "iCBS as published": trace(task, ICBS.published(), chosen.seconds, "100000steps"),
            "iCBS by stages (default)": trace(task, ICBS(), chosen.seconds, "100000steps"),
        }
        draw(traces, start, floor, FIGURES / "garment.svg")
        refresh(ROOT / "README.md", "garment.py", lines)
        (FIGURES / "garment.json").write_text(json.dumps({"runs": found, "traces": traces}, indent=1) + "\n")


if __name__ == "__main__":
    try:
        main()
    except SecateurError as error:
        sys.exit(f"error: {error}")
