"""The figures of a report, and those that set several runs side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from secateur.report.read import RunRecord
from secateur.report.style import BLUE, GREEN, GREY, INK, ORANGE, SERIES, label, legend, new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ACTIVITIES = ("capture", "select", "solve", "evaluate", "recalibrate", "refit")
_ALWAYS = _ACTIVITIES[:4]


def loss_figure(run: RunRecord) -> "Figure | None":
    """Draw the loss against the seconds, with dense model and start as reference lines.

    Args:
        run: the run.

    Returns:
        The figure; None where the run had no steps.
    """
    steps = run.steps()
    if not steps:
        return None
    figure, axes = new_figure()
    axes.plot(
        [s["elapsed"] for s in steps], [s["loss"] for s in steps], color=BLUE, alpha=0.55, marker=".",
        markersize=4, linewidth=1, label="calibration batch",
    )  # fmt: skip
    guarded = [s for s in steps if s.get("guard") is not None]
    if guarded:
        axes.plot(
            [s["elapsed"] for s in guarded], [s["guard"] for s in guarded], color=ORANGE, linewidth=1.6,
            label="guard samples",
        )  # fmt: skip
    for subject, line in (("dense", "--"), ("start", ":")):
        if "loss" in run.metrics(subject):
            axes.axhline(
                run.metrics(subject)["loss"], color=INK, linestyle=line, linewidth=1,
                label=f"{subject}, evaluation",
            )  # fmt: skip
    if "loss" in run.metrics("pruned"):
        axes.plot(
            [run.report["seconds"]["total"]], [run.metrics("pruned")["loss"]], color=GREEN, marker="D",
            linestyle="none", label="pruned, evaluation",
        )  # fmt: skip
    label(axes, "seconds", "loss, nats a sample")
    legend(figure, axes)
    return figure


def trust_figure(run: RunRecord) -> "Figure | None":
    """Draw the predicted against the measured change of the loss of each step.

    Args:
        run: the run.

    Returns:
        The figure; None where no change was measured.
    """
    measured = [s for s in run.steps() if s.get("measured") is not None and s.get("predicted") is not None]
    if not measured:
        return None
    figure, axes = new_figure()
    for accepted, colour, marker, words in ((True, BLUE, "o", "kept"), (False, ORANGE, "x", "undone")):
        chosen = [s for s in measured if bool(s.get("accepted", True)) is accepted]
        if chosen:
            axes.scatter(
                [s["predicted"] for s in chosen], [s["measured"] for s in chosen], s=16, color=colour,
                marker=marker, alpha=0.8, label=words,
            )  # fmt: skip
    axes.axline((0.0, 0.0), slope=1.0, color=GREY, linewidth=1, linestyle="--", label="as predicted")
    axes.axhline(0.0, color=GREY, linewidth=0.6)
    label(axes, "predicted change of the loss", "measured change")
    legend(figure, axes)
    return figure


def layer_figure(run: RunRecord) -> "Figure":
    """Draw the density of each layer, and the flips as a fraction of its weights.

    Args:
        run: the run.

    Returns:
        The figure.
    """
    densities: Mapping[str, float] = run.report["density"]["layers"]
    sizes = next((e["layers"] for e in run.events if e.get("event") == "started"), {})
    flips = layer_flips(run)
    names = list(densities)[::-1]
    figure, axes = new_figure(height=max(2.0, 0.9 + 0.42 * len(names)))
    rows = range(len(names))
    axes.barh([r + 0.2 for r in rows], [densities[n] for n in names], 0.38, color=BLUE, label="density")
    shares = [flips.get(n, 0) / (sizes[n][0] * sizes[n][1]) if n in sizes else 0.0 for n in names]
    if any(shares):
        axes.barh([r - 0.2 for r in rows], shares, 0.38, color=ORANGE, label="flips per weight")
    axes.set_yticks(list(rows), names)
    axes.grid(False, axis="y")
    label(axes, "fraction of the layer's weights", "")
    legend(figure, axes)
    return figure


def layer_flips(run: RunRecord) -> dict[str, int]:
    """Count the flips of all steps that were kept, and of a refit that chose the mask anew.

    Args:
        run: the run.

    Returns:
        Flips by layer.
    """
    totals: dict[str, int] = dict(run.report.get("refit_flips", {}))
    for step in run.steps():
        if step.get("accepted", True):
            for name, flips in step.get("layers", {}).items():
                totals[name] = totals.get(name, 0) + flips
    return totals


def time_figure(run: RunRecord) -> "Figure":
    """Draw where the seconds went.

    Args:
        run: the run.

    Returns:
        The figure.
    """
    seconds = run.report["seconds"]
    spent = {n: float(seconds.get(n, 0.0)) for n in _ACTIVITIES if n in _ALWAYS or n in seconds}
    colours = (*(SERIES[_ACTIVITIES.index(name)] for name in spent), GREY)
    spent["other"] = max(0.0, float(seconds["total"]) - sum(spent.values()))
    figure, axes = new_figure(height=1.5)
    left = 0.0
    for (name, value), colour in zip(spent.items(), colours, strict=True):
        axes.barh(
            [0],
            [value],
            left=left,
            color=colour,
            label=f"{name} {value:.2g} s" if value < 10 else f"{name} {value:.0f} s",
        )
        left += value
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(False, axis="y")
    label(axes, "seconds", "")
    legend(figure, axes)
    return figure


def compare_losses(runs: Sequence[RunRecord]) -> "Figure":
    """Draw the loss of several runs against the seconds.

    Lines are losses on guard samples, or on calibration batches where there are none; diamonds
    are evaluation losses at the end; the dashed line is the dense model.

    Args:
        runs: the runs.

    Returns:
        The figure.
    """
    figure, axes = new_figure(7.2, 4.0)
    for at, run in enumerate(runs):
        colour = SERIES[at % len(SERIES)]
        line = [(s["elapsed"], s["loss"] if s.get("guard") is None else s["guard"]) for s in run.steps()]
        if line:
            axes.plot(*zip(*line, strict=True), color=colour, linewidth=1.2, alpha=0.8)
        if "loss" in run.metrics("pruned"):
            axes.plot(
                [run.report["seconds"]["total"]], [run.metrics("pruned")["loss"]], color=colour, marker="D",
                linestyle="-", label=run.name,
            )  # fmt: skip
    dense = {run.metrics("dense").get("loss") for run in runs} - {None}
    for at, loss in enumerate(sorted(filter(None, dense))):
        axes.axhline(loss, color=INK, linestyle="--", linewidth=1, label="" if at else "dense")
    label(axes, "seconds", "loss, nats a sample")
    legend(figure, axes)
    return figure


def save_comparison(runs: Sequence[RunRecord], path: str | Path) -> Path:
    """Write the comparison of several runs as a picture.

    Args:
        runs: the runs.
        path: a .svg, .png or .pdf file.

    Returns:
        The path.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    compare_losses(runs).savefig(target, dpi=150, facecolor="white")
    return target


def save_spread(
    groups: Mapping[str, Mapping[str, Sequence[float]]], path: str | Path, references: Mapping[str, float]
) -> Path:
    """Draw repeated measurements of several methods: each one a dot, their mean a bar.

    Args:
        groups: by metric and by method, one value a seed.
        path: a .svg, .png or .pdf file.
        references: by metric, what a dashed line shows: the dense model.

    Returns:
        The path.
    """
    from matplotlib.figure import Figure

    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(3.6 * len(groups), 3.2), layout="constrained")
    for at, (metric, methods) in enumerate(groups.items(), start=1):
        axes = figure.add_subplot(1, len(groups), at)
        for place, (values, colour) in enumerate(zip(methods.values(), SERIES, strict=False)):
            mean = sum(values) / len(values)
            axes.bar([place], [mean], 0.6, color=colour, alpha=0.35)
            # Side by side, so that equal values do not hide one another.
            shifts = [place + 0.3 * ((i + 0.5) / len(values) - 0.5) for i in range(len(values))]
            axes.scatter(shifts, list(values), s=18, color=colour, zorder=3)
        if metric in references:
            axes.axhline(references[metric], color=GREY, linestyle="--", linewidth=1)
            axes.annotate(
                "dense", (1, references[metric]), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                fontsize=8, color=GREY,
            )  # fmt: skip
        axes.set_xticks(range(len(methods)), list(methods), fontsize=9)
        axes.set_title(metric, fontsize=10, loc="left")
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.savefig(target, dpi=150, facecolor="white")
    return target
