"""Tables and words that several commands print."""

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from secateur.report.read import SUBJECTS

_PERCENT = ("accuracy",)


def metric(name: str, value: float | None) -> str:
    """Write a metric as people read it.

    Args:
        name: the metric.
        value: its value; None where there is none.

    Returns:
        Such as ``"82.10 %"`` or ``"0.5312"``.
    """
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if name in _PERCENT else f"{value:.4f}"


def seconds(value: float) -> str:
    """Write a time.

    Args:
        value: seconds.

    Returns:
        Such as ``"12.3 s"`` or ``"4 min 05 s"``.
    """
    return f"{value:.1f} s" if value < 120 else f"{value // 60:.0f} min {value % 60:02.0f} s"


def summary(report: Mapping[str, Any]) -> Table:
    """Set dense model, start and result side by side.

    Args:
        report: report.json.

    Returns:
        The table.
    """
    evaluation = report["evaluation"]
    present = [(key, words) for key, words in SUBJECTS if evaluation.get(key)]
    names = sorted({n for key, _ in present for n in evaluation[key]}, key=lambda n: (n != "loss", n))
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("evaluation data")
    for name in names:
        table.add_column(name, justify="right")
    for key, words in present:
        style = "bold green" if key == "pruned" else ""
        table.add_row(words, *(metric(name, evaluation[key].get(name)) for name in names), style=style)
    return table
