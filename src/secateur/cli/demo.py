"""`secateur demo`: small classifiers of three kinds, three ways to prune them, and what that gives."""

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
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from secateur.core.errors import SecateurError
from secateur.core.events import Evaluated, Event, Stepped
from secateur.recipes import load, prepare, run_recipe
from secateur.report import save_spread

# By recipe, what is pruned.
_NETWORKS = {
    "digits": "perceptron",
    "digits-cnn": "convolutional network",
    "digits-vit": "vision transformer",
}
_BEST = "iCBS"
_METHODS: dict[str, Any] = {
    "magnitude": {"name": "one-shot", "score": "magnitude"},
    "gradient": {"name": "one-shot", "score": "gradient"},
    _BEST: None,  # what the recipe says
}


@dataclass
class Results:
    """What was measured on one kind of network, one value a seed.

    Attributes:
        network: its name.
        density: what it was pruned to.
        loss: by method, ``"dense"`` among them.
        accuracy: likewise.
    """

    network: str
    density: float
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
            f"[bold]Handwritten digits[/]: small networks of three kinds are trained, {seeds} of each, and "
            "pruned by three methods.",
            highlight=False,
        )
    bar = Progress(
        TextColumn("{task.description:<56}"), BarColumn(24), TimeElapsedColumn(), console=console,
        disable=quiet or not console.is_terminal,
    )  # fmt: skip
    measured: list[Results] = []
    with bar, _one_thread():
        task = bar.add_task("", total=len(_NETWORKS) * seeds * (len(_METHODS) + 1))
        for recipe in _NETWORKS:
            results = _measure(bar, task, recipe, folder / recipe, range(seeds), budget)
            console.print(_table(results, seeds))
            console.print(_verdict(results, seeds), "", sep="\n", highlight=False, soft_wrap=True)
            measured.append(results)
        bar.update(task, description="done")
    figure = _figure(measured, folder)
    first = folder / next(iter(_NETWORKS)) / f"{_BEST.lower()}-0" / "report.html"
    console.print(
        f"{time.monotonic() - begin:.0f} s in all. {escape(str(figure))} shows it; "
        f"{escape(str(first))} is the report of one run.\n"
        "Next: secateur prune digits --density 0.05, or secateur recipes copy digits to make it your own.",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _measure(
    bar: Progress, task: TaskID, recipe: str, folder: Path, seeds: Sequence[int], budget: str
) -> Results:
    """Train a network for each seed and prune it by each method."""
    name = _NETWORKS[recipe]
    results = Results(name, load(recipe).run.density)
    for seed in seeds:
        bar.update(task, description=f"{name} {seed}: training")
        settings = {"model.seed": seed, "model.network.seed": seed, "run.seed": seed, "run.budget": budget}
        things = prepare(load(recipe, settings))
        bar.advance(task)
        for method, pruner in _METHODS.items():
            run = run_recipe(
                load(recipe, settings if pruner is None else {**settings, "pruner": pruner}),
                out=folder / f"{method.lower()}-{seed}",
                listeners=[_Shown(bar, task, f"{name} {seed}: {method}")],
                # The network is pruned in place, and the other methods want it whole.
                ingredients=replace(things, model=copy.deepcopy(things.model)),
            )
            results.add(method, run.report["evaluation"]["pruned"])
            if method == _BEST:  # the same for all methods
                results.add("dense", run.report["evaluation"]["dense"])
            bar.advance(task)
    return results


class _Shown:
    """Writes beside the bar what a run is at."""

    def __init__(self, bar: Progress, task: TaskID, words: str) -> None:
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
    heading = f"{results.network}, density {results.density:g}, {seeds} seed{'s' * (seeds != 1)}"
    table.add_column(heading, min_width=48)
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


def _figure(measured: Sequence[Results], folder: Path) -> Path:
    """Draw every accuracy, one panel a kind of network."""
    panels = {f"{results.network}: accuracy, %": results.accuracy for results in measured}
    groups = {title: {method: values[method] for method in _METHODS} for title, values in panels.items()}
    dense = {title: statistics.fmean(values["dense"]) for title, values in panels.items()}
    return save_spread(groups, folder / "demo.png", dense)
