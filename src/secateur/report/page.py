"""The page of a run: one HTML file that needs nothing else."""

from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from secateur.report.figure import layer_figure, layer_flips, loss_figure, time_figure, trust_figure
from secateur.report.read import SUBJECTS, RunRecord, read_run
from secateur.report.style import to_svg

PAGE_FILE = "report.html"
_PERCENT = ("accuracy",)


def write_page(folder: str | Path) -> Path:
    """Make report.html of a run folder, again if need be.

    Args:
        folder: the run folder.

    Returns:
        The path of the page.
    """
    path = Path(folder).expanduser() / PAGE_FILE
    path.write_text(render(read_run(folder)), encoding="utf-8")
    return path


def render(run: RunRecord) -> str:
    """Write the page of a run.

    Args:
        run: what it left behind.

    Returns:
        HTML.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("secateur.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        run=run,
        report=run.report,
        rows=list(_rows(run)),
        names=_metric_names(run),
        figures=list(_figures(run)),
        layers=_layers(run),
        gain=_gain(run),
    )


def _metric_names(run: RunRecord) -> list[str]:
    """List the metrics, the loss first."""
    names = {name for subject, _ in SUBJECTS for name in run.metrics(subject)}
    return sorted(names, key=lambda name: (name != "loss", name))


def _rows(run: RunRecord) -> Iterator[tuple[str, list[str]]]:
    """Write the metrics of each subject."""
    for subject, words in SUBJECTS:
        metrics = run.metrics(subject)
        if metrics:
            yield words, [written(name, metrics.get(name)) for name in _metric_names(run)]


def written(name: str, value: float | None) -> str:
    """Write a metric as people read it.

    Args:
        name: the metric.
        value: its value; None where it was not measured.

    Returns:
        Such as ``"82.10 %"`` or ``"0.5312"``.
    """
    if value is None:
        return "-"
    return f"{100 * value:.2f} %" if name in _PERCENT else f"{value:.4f}"


def _layers(run: RunRecord) -> list[dict[str, Any]]:
    """Give a row for each layer."""
    flips = layer_flips(run)
    return [
        {"name": name, "density": density, "flips": flips.get(name, 0)}
        for name, density in run.report["density"]["layers"].items()
    ]


def _gain(run: RunRecord) -> str | None:
    """Say how much of the loss that one-shot pruning cost was won back."""
    dense, start, pruned = (run.metrics(subject).get("loss") for subject in ("dense", "start", "pruned"))
    # Of a cost within rounding and noise no share can be told.
    if dense is None or start is None or pruned is None or start <= 1.01 * dense:
        return None
    return f"{100 * (start - pruned) / (start - dense):.0f} %"


def _certificate(run: RunRecord) -> str:
    """Say how near to their lower bounds the block problems were solved, where that is known."""
    gaps = [step["gap"] for step in run.steps() if step.get("gap") is not None]
    if not gaps:
        return ""
    return f" Every block problem was solved to within {100 * max(gaps):.2g} % of what can be gained in it."


def _figures(run: RunRecord) -> Iterator[tuple[str, str, str]]:
    """Draw the figures there is something to show in: heading, SVG, explanation."""
    drawn = (
        ("Loss", loss_figure(run), "Calibration losses are of each step's own batch, or the mean over the "
         "mini-batches of a stage of averaged gradients, so they jump about; guard samples are the same "
         "throughout, and evaluation data were not used to choose the mask."),
        ("Predicted and measured change", trust_figure(run), "Each point is a step. On the dashed line the "
         "quadratic model was right; above it, the loss fell by less than predicted."),
        ("Layers", layer_figure(run), "A weight that flips in two steps counts twice."),
        ("Time", time_figure(run), "Other: loading, writing and what lies between." + _certificate(run)),
    )  # fmt: skip
    for heading, figure, words in drawn:
        if figure is not None:
            yield heading, to_svg(figure, escape(heading, quote=True)), words
