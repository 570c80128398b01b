"""`secateur demo`: small classifiers, three ways to prune them, and what that gives."""

import copy
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from secateur.core.errors import SecateurError
from secateur.core.events import Evaluated, Event, Stepped
from secateur.recipes import load, prepare, run_recipe
from secateur.report import save_spread

_BEST = "iCBS"
_METHODS: dict[str, Any] = {
    "magnitude": {"name": "one-shot", "score": "magnitude"},
    "gradient": {"name": "one-shot", "score": "gradient"},
    _BEST: None,  # what the recipe says
}


@dataclass
class Results:
    """What was measured, one value a seed.

    Attributes:
        loss: by method, ``"dense"`` among them.
        accuracy: likewise.
    """

    loss: dict[str, list[float]] = field(default_factory=dict)
    accuracy: dict[str, list[float]] = field(default_factory=dict)

    def add(self, method: str, metrics: dict[str, float]) -> None:
        """Enter what one run gave.

        Args:
            method: by which it was pruned.
            metrics: loss and accuracy.
        """
        self.loss.setdefault(method, []).append(metrics["loss"])
        self.accuracy.setdefault(method, []).append(100 * metrics["accuracy"])


def run_demo(out: str, seeds: int, budget: str, *, quiet: bool) -> int:
    """Train, prune and compare.

    Args:
        out: where run folders and figure go.
        seeds: how many classifiers.
        budget: time for each iCBS run.
        quiet: print the table only.

    Returns:
        The status.

    Raises:
        SecateurError: there are no seeds.
    """
    if seeds < 1:
        raise SecateurError(f"a demonstration with {seeds} seeds shows nothing: give at least 1.")
    console = Console()
    folder = _free(Path(out).expanduser())
    begin = time.monotonic()
    if not quiet:
        console.print(
            f"[bold]Handwritten digits[/]: {seeds} small classifiers are trained, and each is pruned to "
            "a tenth of its weights by three methods.",
            highlight=False,
        )
    bar = Progress(
        TextColumn("{task.description:<44}"), BarColumn(24), TimeElapsedColumn(), console=console,
        disable=quiet or not console.is_terminal,
    )  # fmt: skip
    with bar, _one_thread():
        results = _measure(bar, folder, range(seeds), budget)
    console.print(_table(results, seeds))
    console.print(_verdict(results, seeds), highlight=False, soft_wrap=True)
    figure = _figure(results, folder)
    first = folder / f"{_BEST.lower()}-0" / "report.html"
    console.print(
        f"\n{time.monotonic() - begin:.0f} s in all. {escape(str(figure))} shows it; "
        f"{escape(str(first))} is the report of one run.\n"
        "Next: secateur prune digits --density 0.05, or secateur recipes copy digits to make it your own.",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _measure(bar: Progress, folder: Path, seeds: Sequence[int], budget: str) -> Results:
    """Train a classifier for each seed and prune it by each method."""
    results = Results()
    rounds = len(_METHODS) + 1
    task = bar.add_task("", total=rounds * len(seeds))
    for seed in seeds:
        bar.update(task, description=f"seed {seed}: training")
        settings = {"model.seed": seed, "model.network.seed": seed, "run.seed": seed, "run.budget": budget}
        things = prepare(load("digits", settings))
        bar.advance(task)
        for method, pruner in _METHODS.items():
            recipe = load("digits", settings if pruner is None else {**settings, "pruner": pruner})
            run = run_recipe(
                recipe,
                out=folder / f"{method.lower()}-{seed}",
                listeners=[_Shown(bar, task, f"seed {seed}: {method}")],
                # The network is pruned in place, and the other methods want it whole.
                ingredients=replace(things, model=copy.deepcopy(things.model)),
            )
            results.add(method, run.report["evaluation"]["pruned"])
            if method == _BEST:  # the same for all methods
                results.add("dense", run.report["evaluation"]["dense"])
            bar.advance(task)
    bar.update(task, description="done")
    return results


class _Shown:
    """Writes beside the bar what a run is at."""

    def __init__(self, bar: Progress, task: Any, words: str) -> None:
        self._bar, self._task, self._words = bar, task, words

    def __call__(self, event: Event) -> None:
        if isinstance(event, Stepped):
            loss = event.loss if event.guard is None else event.guard
            self._bar.update(self._task, description=f"{self._words}, step {event.step}, loss {loss:.3f}")
        elif isinstance(event, Evaluated):
            self._bar.update(self._task, description=f"{self._words}, loss {event.metrics['loss']:.3f}")


@contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread: on so small a network, several wait for one another."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _free(folder: Path) -> Path:
    """Give the folder, or the first of FOLDER-2, FOLDER-3, ... that does not exist."""
    number, free = 1, folder
    while free.exists():
        number += 1
        free = folder.with_name(f"{folder.name}-{number}")
    return free


def _spread(values: Sequence[float], form: str) -> str:
    """Write mean and standard deviation."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.fmean(values):{form}} ± {deviation:{form}}"


def _table(results: Results, seeds: int) -> Table:
    """Set the methods one below the other."""
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    table.add_column(f"density 0.1, {seeds} seed{'s' * (seeds != 1)}")
    table.add_column("accuracy, %", justify="right")
    table.add_column("loss, nats", justify="right")
    for method in ("dense", *_METHODS):
        words = method if method in ("dense", _BEST) else f"one-shot {method}"
        style = "bold green" if method == _BEST else ""
        table.add_row(
            words, _spread(results.accuracy[method], ".1f"), _spread(results.loss[method], ".3f"), style=style
        )
    return table


def _verdict(results: Results, seeds: int) -> str:
    """Say by how much iCBS is ahead, seed by seed."""
    lines = []
    for method in _METHODS:
        if method != _BEST:
            pairs = list(zip(results.accuracy[_BEST], results.accuracy[method], strict=True))
            losses = [b - a for a, b in zip(results.loss[_BEST], results.loss[method], strict=True)]
            points = [ours - theirs for ours, theirs in pairs]
            ahead = sum(point > 0 for point in points)
            lines.append(
                f"{_BEST} is ahead of {method} by {_spread(points, '.1f')} points of accuracy and "
                f"{_spread(losses, '.3f')} nats, on {ahead} of {seeds} seeds."
            )
    return "\n".join(lines)


def _figure(results: Results, folder: Path) -> Path:
    """Draw every measurement."""
    groups = {
        "accuracy, %": {method: results.accuracy[method] for method in _METHODS},
        "loss, nats a sample": {method: results.loss[method] for method in _METHODS},
    }
    dense = {
        "accuracy, %": statistics.fmean(results.accuracy["dense"]),
        "loss, nats a sample": statistics.fmean(results.loss["dense"]),
    }
    return save_spread(groups, folder / "demo.png", dense)
