"""What a run looks like while it goes on."""

import time
from types import TracebackType

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from secateur.cli.tables import metric, seconds
from secateur.core.events import Evaluated, Event, Finished, Noticed, Started, Stepped

_ROWS = 8
_SILENCE = 3.0  # seconds between plain lines


class Progress:
    """Shows events: as a live table on a terminal, as a plain line every few seconds elsewhere.

    It is a listener, and a context in which it is shown.
    """

    def __init__(self, console: Console, title: str) -> None:
        """Prepare the display.

        Args:
            console: where to.
            title: what is pruned.
        """
        self._console, self._title = console, escape(title)
        self._steps: list[Stepped] = []
        self._said = -_SILENCE
        self._live: Live | None = None

    def __enter__(self) -> "Progress":
        """Begin to show."""
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=8, transient=False)
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing."""
        if self._live is not None:
            if self._steps:
                self._live.update(self._table())
            self._live.__exit__(kind, error, trace)
            self._live = None

    def __call__(self, event: Event) -> None:
        """Show an event.

        Args:
            event: what happened.
        """
        match event:
            case Started():
                self._say(self._header(event))
            case Evaluated():
                values = ", ".join(f"{n} {metric(n, v)}" for n, v in event.metrics.items())
                self._say(f"[dim]{seconds(event.elapsed):>8}[/]  {event.subject:<7} {values}")
            case Noticed():
                self._say(f"[yellow]note: {escape(event.message)}")
            case Stepped():
                self._steps = [*self._steps[-_ROWS + 1 :], event]
                self._step(event)
            case Finished():
                self._say(f"[dim]{seconds(event.elapsed):>8}[/]  {_REASONS.get(event.reason, event.reason)}")
            case _:
                pass

    def _header(self, event: Started) -> str:
        sizes = [outputs * inputs for outputs, inputs in event.layers.values()]
        budget = f"{event.seconds_limit:g} s" if event.seconds_limit else ""
        budget = (
            f"{event.steps_limit} step{'s' * (event.steps_limit != 1)}"
            if event.steps_limit is not None
            else budget
        )
        words = f"{self._title}: {len(sizes)} layer{'s' * (len(sizes) != 1)}, {sum(sizes):,} weights"
        if event.step:
            words += f", going on after step {event.step}"
        return f"[bold]{words}[/], density {event.density:g}, budget {budget or 'none'}, seed {event.seed}"

    def _step(self, event: Stepped) -> None:
        """Show a step in the live table, or as a line if the last one is long enough ago."""
        if self._live is not None:
            hint = Text("ctrl-c stops after this step and keeps the best mask", style="dim")
            self._live.update(Group(self._table(), hint), refresh=False)
        elif time.monotonic() - self._said >= _SILENCE:
            self._said = time.monotonic()
            values = _cells(event)
            names = ("step", "predicted", "measured", "loss", "density", "flips", "left")
            self._say("  ".join(f"{n} {v}" for n, v in zip(names, values, strict=True) if v != "-"))

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
        for name in ("step", "predicted", "measured", "loss", "density", "flips", "time left"):
            table.add_column(name, justify="right", min_width=7)
        for step in self._steps:
            table.add_row(*_cells(step), style="" if step.accepted else "dim strike")
        return table

    def _say(self, words: str) -> None:
        """Print a line above whatever is live."""
        self._console.print(words, highlight=False, soft_wrap=not self._console.is_terminal)


_REASONS = {
    "budget": "the budget is spent",
    "converged": "converged: nothing more was found to improve",
    "complete": "done",
    "interrupted": "stopped as asked",
}


def _cells(step: Stepped) -> tuple[str, ...]:
    """Write a step's figures."""
    loss = step.loss if step.guard is None else step.guard
    return (
        str(step.step),
        "-" if step.predicted is None else f"{step.predicted:+.4f}",
        "-" if step.measured is None else f"{step.measured:+.4f}",
        f"{loss:.4f}",
        f"{step.density:.4g}",
        f"{step.flips:,}",
        "-" if step.remaining is None else seconds(step.remaining),
    )
