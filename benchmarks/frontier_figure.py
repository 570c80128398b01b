"""The figure of frontier.py: test loss and test accuracy against seconds, a line a method.

Drawn by `frontier.py --write`, and again from its numbers by `frontier.py --only figure`.
"""

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

# Colours that the colour-blind can tell apart (Okabe and Ito 2008), from published to ours.
LOOKS = (
    {"color": "#9c6b00", "marker": "v"},
    {"color": "#009e73", "marker": "s"},
    {"color": "#d55e00", "marker": "D"},
    {"color": "#0072b2", "marker": "o"},
    {"color": "#56b4e9", "marker": "^"},
)
GREY = "#6b7078"
TICKS = (0.3, 1, 3, 10, 30, 100, 300, 1000)
# The runs of these are points of no line: horizontal lines, or words where they are off the scale.
REFERENCES = ("dense model", "magnitude, one shot", "gradient, one shot")


def draw(runs: Sequence[dict[str, Any]], methods: Sequence[str], cores: int, path: Path) -> None:
    """Draw the two panels.

    Args:
        runs: with method, budget, seconds, loss and accuracy (a fraction).
        methods: those that get a line, in the order of the legend.
        cores: of the machine.
        path: a .svg, .png or .pdf file.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.8, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    panel(left, runs, methods, "loss", 1.0, ".3f")
    panel(right, runs, methods, "accuracy", 100.0, ".1f")
    left.set_ylabel("test loss, nats a sample")
    right.set_ylabel("test accuracy, %")
    for axes in (left, right):
        axes.set_xlabel(f"seconds ({cores} cores)")
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False, fontsize=9)
    # A fixed salt and no date: the same numbers give the same file.
    plain = {"metadata": {"Date": None}} if path.suffix == ".svg" else {}
    with mpl.rc_context({"svg.hashsalt": "secateur"}):
        figure.savefig(path, dpi=150, facecolor="white", **plain)


def panel(
    axes: "Axes", runs: Sequence[dict[str, Any]], methods: Sequence[str], key: str, scale: float, digits: str
) -> None:
    """Draw one metric: mean and standard deviation of each method under each budget."""
    heights: list[float] = []
    for name, look in zip(methods, LOOKS, strict=True):
        budgets: dict[str, list[dict[str, Any]]] = {}
        for run in runs:
            if run["method"] == name and not run["budget"].endswith("steps"):
                budgets.setdefault(run["budget"], []).append(run)
        values = [[scale * run[key] for run in found] for found in budgets.values()]
        at = [statistics.mean(run["seconds"] for run in found) for found in budgets.values()]
        means = [statistics.mean(each) for each in values]
        errors = [statistics.stdev(each) if len(each) > 1 else 0.0 for each in values]
        axes.errorbar(at, means, errors, capsize=2.5, markersize=4.5, linewidth=1.5, label=name, **look)
        heights += means
    references = {run["method"]: scale * run[key] for run in runs if run["method"] in REFERENCES}
    dense = references[REFERENCES[0]]
    margin = 0.06 * (max([*heights, dense]) - min([*heights, dense]))
    low, high = min([*heights, dense]) - margin, max([*heights, dense]) + margin
    axes.set(xscale="log", ylim=(low, high))
    if key == "loss":  # the methods that come near the dense model need the room
        axes.set_yscale("log")
        step = 0.1 if high - low > 0.25 else 0.02
        plain_ticks(axes.yaxis, [at * step for at in range(round(high / step) + 1)])
    plain_ticks(axes.xaxis, TICKS)
    refer(axes, references, digits, key == "loss")
    axes.grid(True, color=GREY, alpha=0.18, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def plain_ticks(axis: "Axis", ticks: Sequence[float]) -> None:
    """Put those ticks on a logarithmic axis that lie in view, written as usual."""
    first, last = axis.get_view_interval()
    shown = [tick for tick in ticks if first <= tick <= last]
    axis.set_ticks(shown, [f"{tick:g}" for tick in shown])
    axis.set_ticks([], minor=True)


def refer(axes: "Axes", references: dict[str, float], digits: str, falls: bool) -> None:
    """Draw what needs no time as horizontal lines, and put in words what is off the scale.

    The differences between methods would be lost on a scale that has room for one-shot pruning, too.
    """
    low, high = axes.get_ylim()
    outside = []
    for name, value in references.items():
        words = f"{name}: {value:{digits}}"
        if low <= value <= high:
            axes.axhline(value, color=GREY, linestyle="--", linewidth=1)
            axes.annotate(
                words, (0.01, value), xycoords=("axes fraction", "data"), xytext=(0, -3 if falls else 3),
                textcoords="offset points", va="top" if falls else "bottom", fontsize=8, color=GREY,
            )  # fmt: skip
        else:
            outside.append(f"{words} {'↑' if value > high else '↓'}")
    axes.text(
        0.99, 0.98 if falls else 0.03, "\n".join(outside), transform=axes.transAxes, ha="right",
        va="top" if falls else "bottom", fontsize=8, color=GREY,
    )  # fmt: skip
