"""Test loss and accuracy against seconds: iCBS, what it must beat, and what is done in one shot.

    SECATEUR_ASSETS=... python benchmarks/frontier.py [--seeds 5] [--budgets 1,3,10]
        [--densities 0.05,0.2,0.3,0.5] [--seconds 3] [--only curve | densities | figure] [--write]

The Garment Classifier, on this machine, in one process. The part "curve" is density 0.1 under several
budgets, each a run of its own: what is annealed is annealed over the budget, so that the trace
of a long run is no short run. The part "densities" is one budget at other densities. For each seed and
budget (or density) all methods run in turn, so that a drift of the machine hits all alike; each run
starts from a freshly loaded model; the seconds are those of the run's clock, first evaluation to last.

With --write the tables of README.md (curve) and docs/method.md (densities) and docs/figures/frontier.svg
are replaced, and the numbers kept in docs/figures/frontier.json, from which "figure" draws again without
running anything.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import (
    DENSITY,
    FIGURES,
    ROOT,
    Run,
    garment_model,
    garment_task,
    machine,
    mean_seconds,
    measure,
    parted,
    refresh,
    results,
    spread,
    table,
)
from frontier_figure import draw

from secateur import ICBS, Classification, OneShot, SecateurError, evaluate
from secateur.allocation import Global
from secateur.core.allocation import Allocation
from secateur.pruners import LearnedMask, Pruner
from secateur.scores import Gradient

PAGES = {
    "curve": (ROOT / "README.md", "frontier.py"),
    "densities": (ROOT / "docs" / "method.md", "frontier.py densities"),
}


@dataclass(frozen=True)
class Method:
    """A line of the figure: a pruner, how the density is spread, and the least seconds it can use."""

    name: str
    pruner: Pruner
    allocation: Allocation | None = None
    least: float = 0.0


MAGNITUDE = Method("magnitude, one shot", OneShot())
GRADIENT = Method("gradient, one shot", OneShot(Gradient()))
PUBLISHED = Method("iCBS as published", ICBS.published())
BLOCKS = Method("iCBS by block stages only", ICBS(share=0.0), least=3.0)
LEARNED = Method("LearnedMask (straight-through)", LearnedMask())
OURS = Method("iCBS (default)", ICBS())
GLOBAL = Method("iCBS (default), global allocation", ICBS(), Global())
ONE_SHOT = (MAGNITUDE, GRADIENT)
TIMED = (PUBLISHED, BLOCKS, LEARNED, OURS, GLOBAL)
NAMES = ["dense model", *(method.name for method in (*ONE_SHOT, *TIMED))]


@dataclass(frozen=True)
class Case:
    """One run: a method under a budget, None for those done in one shot."""

    method: Method
    budget: str | None
    seed: int
    density: float = DENSITY

    def run(self, task: Classification) -> Run:
        """Run it, and say so."""
        found = measure(
            task, self.method.pruner, self.budget, self.seed, self.density, self.method.allocation
        )
        print(
            f"density {self.density:g}, seed {self.seed}, {named(self.method.name, self.budget)}: "
            f"{found['seconds']:.1f} s, accuracy {100 * found['accuracy']:.2f} %, loss {found['loss']:.4f}",
            flush=True,
        )
        return {"method": self.method.name, "budget": self.budget, "density": self.density, **found}


def named(name: str, budget: str | None) -> str:
    """Put a budget, such as 30steps or 10s, beside the name of a method."""
    if budget is None:
        return name
    unit = "steps" if budget.endswith("steps") else "s"
    return f"{name}, {budget.removesuffix(unit)} {unit}"


def curve_cases(seeds: int, budgets: Sequence[float]) -> Iterator[Case]:
    """List the runs at the usual density, methods and budgets in turn for each seed."""
    yield from (Case(method, None, 0) for method in ONE_SHOT)
    for seed in range(seeds):
        yield Case(PUBLISHED, "30steps", seed)
        for budget in budgets:
            yield from (Case(m, f"{budget:g}s", seed) for m in TIMED if budget >= m.least)


def density_cases(seeds: int, densities: Sequence[float], seconds: float) -> Iterator[Case]:
    """List the runs at other densities, all methods in the same time."""
    for seed in range(seeds):
        for density in densities:
            yield from (Case(method, None, seed, density) for method in ONE_SHOT)
            yield from (Case(m, f"{seconds:g}s", seed, density) for m in (PUBLISHED, LEARNED, OURS))


def run_all(task: Classification, cases: Iterable[Case]) -> list[Run]:
    """Run all cases after a short run of each method, in which kernels are compiled."""
    cases = list(cases)
    for method in {case.method.name: case.method for case in cases}.values():
        method.pruner.warm_up()
        # oneDNN compiles for every shape at its first use, which no warm-up of ours can foresee.
        measure(task, method.pruner, "1steps", 0, DENSITY, method.allocation)
    runs = [case.run(task) for case in cases]
    odd = sum(disturbed(run) for run in runs)
    if odd:
        print(f"note: {odd} of {len(runs)} runs overran or had no time for a step: are the cores shared?")
    return runs


def disturbed(run: Run) -> bool:
    """Say whether a run of so many seconds took many more, or used none: others were using the cores."""
    budget = run["budget"]
    if budget is None or budget.endswith("steps"):
        return False
    return run["seconds"] > 1.1 * float(budget.removesuffix("s")) or run["steps"] == 0


def dense(task: Classification) -> Run:
    """Evaluate the trained model."""
    none = {"budget": None, "density": 1.0, "seconds": 0.0, "steps": 0, "seed": 0}
    return {"method": "dense model", **evaluate(garment_model(), task), **none}


def grouped(runs: Iterable[Run], key: str) -> dict[tuple[str, Any], list[Run]]:
    """Gather the runs that differ in the seed alone, by method, then by the key as it first came."""
    groups: dict[tuple[str, Any], list[Run]] = {}
    for run in sorted(runs, key=lambda run: NAMES.index(run["method"])):  # stable
        groups.setdefault((run["method"], run[key]), []).append(run)
    return groups


def curve_table(runs: Sequence[Run]) -> list[str]:
    """Write the results at the usual density by method and budget."""
    return table(
        ["method", "seconds", "test accuracy, %", "test loss", "seeds"],
        (
            [named(name, budget), mean_seconds(found), *results(found)]
            for (name, budget), found in grouped(runs, "budget").items()
        ),
    )


def density_table(runs: Sequence[Run]) -> list[str]:
    """Write the results at other densities, and first how they compare with the straight-through ones."""
    base = {(run["density"], run["seed"]): run["loss"] for run in runs if run["method"] == LEARNED.name}
    by_density = sorted(grouped(runs, "density").items(), key=lambda item: item[0][1])  # stable
    rows = []
    for (name, density), found in by_density:
        ratios = [run["loss"] / base[run["density"], run["seed"]] for run in found]
        ahead = f"{sum(ratio < 1 for ratio in ratios)} of {len(ratios)}"
        against = ["1", ""] if name == LEARNED.name else [spread(ratios, 3), ahead]
        rows.append([f"{density:g}", name, *against, mean_seconds(found), *results(found)])
    against = ["loss / LearnedMask's", "seeds ahead of it"]
    return table(["density", "method", *against, "seconds", "test accuracy, %", "test loss", "seeds"], rows)


def write(part: str, runs: Sequence[Run], lines: Sequence[str], folder: Path = FIGURES) -> None:
    """Replace the table of a part and keep its numbers beside those of the other part."""
    refresh(*PAGES[part], lines)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "frontier.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept[part] = {"machine": machine(), "runs": list(runs)}
    path.write_text(json.dumps(kept, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def redraw(folder: Path = FIGURES) -> None:
    """Draw the figure from the numbers that were kept."""
    path = folder / "frontier.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if "curve" not in kept:
        raise SecateurError(f"{path} has no curve to draw: run the part curve with --write first.")
    runs, cores = kept["curve"]["runs"], kept["curve"]["machine"]["cores"]
    draw(runs, [method.name for method in TIMED], cores, folder / "frontier.svg")


def numbers(words: str) -> list[float]:
    """Read numbers with commas between them."""
    return [float(word) for word in words.split(",")]


def main() -> None:
    """Run what was asked for, print the tables and write what is to be written."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budgets", type=numbers, default=[1.0, 3.0, 10.0], help="seconds")
    parser.add_argument("--densities", type=numbers, default=[0.05, 0.2, 0.3, 0.5])
    parser.add_argument("--seconds", type=float, default=3.0, help="budget at the other densities")
    parser.add_argument("--only", choices=[*PAGES, "figure"], help="a part alone")
    parser.add_argument("--write", action="store_true", help="replace tables, figure and numbers")
    chosen = parser.parse_args()
    if chosen.only == "figure":
        return redraw()
    parts = [part for part in PAGES if chosen.only in (part, None)]
    if chosen.write:
        for part in parts:
            parted(*PAGES[part])  # better before the runs than after them
    task = garment_task()
    for part in parts:
        if part == "curve":
            runs = [dense(task), *run_all(task, curve_cases(chosen.seeds, chosen.budgets))]
            lines = curve_table(runs)
        else:
            runs = run_all(task, density_cases(chosen.seeds, chosen.densities, chosen.seconds))
            lines = density_table(runs)
        print("\n".join(lines), flush=True)
        if chosen.write:
            write(part, runs, lines)
    if chosen.write and "curve" in parts:
        redraw()


if __name__ == "__main__":
    try:
        main()
    except SecateurError as error:
        sys.exit(f"error: {error}")
