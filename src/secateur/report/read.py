"""Reading a run folder again."""

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.core.errors import SecateurError

REPORT_FILE, EVENTS_FILE, RECIPE_FILE = "report.json", "events.jsonl", "recipe.toml"
# What is evaluated in a run, in this order, and what people call it.
SUBJECTS = (
    ("dense", "dense"),
    ("start", "one-shot start"),
    ("masked", "mask alone"),
    ("recalibrated", "recalibrated"),
    ("pruned", "pruned"),
)
_FORMAT = "secateur-report-1"
_SECTIONS = ("density", "evaluation", "seconds")


@dataclass(frozen=True)
class RunRecord:
    """What a run left behind.

    Attributes:
        name: what to call it.
        report: report.json.
        events: the lines of events.jsonl.
        recipe: recipe.toml as text; empty where there is none.
        skipped: how many lines of events.jsonl are damaged and left out.
    """

    name: str
    report: dict[str, Any]
    events: Sequence[dict[str, Any]] = field(default_factory=tuple)
    recipe: str = ""
    skipped: int = 0

    def steps(self) -> list[dict[str, Any]]:
        """Give the events of the steps or stages.

        Returns:
            The records, in order.
        """
        return [event for event in self.events if event.get("event") == "stepped"]

    def metrics(self, subject: str) -> dict[str, float]:
        """Give what was measured on the evaluation data.

        Args:
            subject: one of `SUBJECTS`, such as ``"pruned"``.

        Returns:
            Metrics by name; empty where it was not evaluated.
        """
        return self.report["evaluation"].get(subject) or {}


def read_run(folder: str | Path) -> RunRecord:
    """Read the report and the events of a finished run.

    Args:
        folder: the run folder.

    Returns:
        The record.

    Raises:
        SecateurError: it is no run folder, the run is not finished, or a file is damaged.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise SecateurError(f"there is no run folder {folder}: give the folder that `secateur prune` wrote.")
    if not (path / REPORT_FILE).is_file():
        if (path / EVENTS_FILE).is_file():
            raise SecateurError(
                f"the run in {folder} is not finished: go on with it by "
                f"`secateur prune --resume {shlex.quote(str(folder))}`."
            )
        raise SecateurError(
            f"{folder} is not a run folder: it holds neither {REPORT_FILE} nor {EVENTS_FILE}."
        )
    report = _json(path / REPORT_FILE)
    if report.get("format") != _FORMAT or not all(isinstance(report.get(s), dict) for s in _SECTIONS):
        raise SecateurError(f"{path / REPORT_FILE} is not a report of this version of Secateur ({_FORMAT}).")
    recipe = path / RECIPE_FILE
    text = recipe.read_text(encoding="utf-8", errors="replace") if recipe.is_file() else ""
    events, skipped = _events(path / EVENTS_FILE)
    return RunRecord(path.resolve().name, report, events, text, skipped)


def _json(path: Path) -> dict[str, Any]:
    """Read a JSON object."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SecateurError(
            f"{path} is damaged ({error}): make the run again, or take it from a copy."
        ) from error
    if not isinstance(content, dict):
        raise SecateurError(f"{path} is damaged: it holds no JSON object.")
    return content


def _events(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Read the lines that are whole, and count the damaged ones."""
    events, skipped = [], 0
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    for at, line in enumerate(lines):
        try:
            event = json.loads(line.decode("utf-8"))
        except (ValueError, RecursionError):
            event = None
        if isinstance(event, dict) and _is_whole(event):
            events.append(event)
        elif at < len(lines) - 1:  # a run that was killed may have left half of the last one
            skipped += 1
    return events, skipped


def _is_whole(event: dict[str, Any]) -> bool:
    """Say whether an event has what the figures are drawn from."""
    layers = event.get("layers", {})
    if not isinstance(event.get("event"), str) or not isinstance(layers, dict):
        return False
    if event["event"] == "stepped":
        numbers = [event.get(name) for name in ("elapsed", "loss")]
        numbers += [event[name] for name in ("predicted", "measured", "guard") if event.get(name) is not None]
        return all(_is_number(value) for value in (*numbers, *layers.values()))
    if event["event"] == "started":
        return all(isinstance(s, list) and len(s) == 2 and all(map(_is_number, s)) for s in layers.values())
    return True


def _is_number(value: Any) -> bool:
    """Say whether a value of JSON is a number."""
    return isinstance(value, int | float) and not isinstance(value, bool)
