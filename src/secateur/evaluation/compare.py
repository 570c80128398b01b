"""Runs beside one another: their report.json files -> the rows of a table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from secateur.core.errors import SecateurError

# Dense numbers of two runs that differ by more than rounding mean another model or other data.
_TOLERANCE = 1e-4
# Of the same model on two devices, of which one may round to 10 bits in places (TensorFloat-32).
ELSEWHERE = 1e-2
# Of the density of a small network: a weight more or less in each layer.
_ROUNDING = 1e-3


@dataclass(frozen=True)
class Comparison:
    """One run in a table; None where its report does not say.

    Attributes:
        name: the run.
        method: the pruner.
        density: the fraction of the prunable weights that is kept.
        metrics: of the pruned model on the evaluation data: loss, accuracy, ...
        dense: of the model before pruning, on the same data.
        start: of the one-shot mask that the run began with.
        seconds: how long the run took.
        seed: its seed.
        device: where it was computed.
    """

    name: str
    method: str | None
    density: float | None
    metrics: Mapping[str, float]
    dense: Mapping[str, float]
    start: Mapping[str, float]
    seconds: float | None
    seed: int | None
    device: str | None = None


def compare(reports: Mapping[str, Mapping[str, Any]]) -> list[Comparison]:
    """Turn reports into rows, the best first within each density.

    Of a report ``density.overall``, ``method``, ``seconds.total``, ``seed`` and the metrics under
    ``evaluation`` are read: those of ``dense``, ``start`` and ``pruned``, each by name.

    Args:
        reports: the content of report.json by the run's name.

    Returns:
        The rows: higher densities first, then lower loss.

    Raises:
        SecateurError: there are no reports, or one has no metrics of a pruned model.
    """
    if not reports:
        raise SecateurError("there is nothing to compare: name at least one run folder.")
    rows = [_row(name, report) for name, report in reports.items()]
    return sorted(rows, key=lambda row: (-(row.density or 0.0), row.metrics.get("loss", 0.0), row.name))


def cautions(rows: Sequence[Comparison]) -> list[str]:
    """Say what makes runs hard to compare.

    Args:
        rows: what `compare` gave.

    Returns:
        One sentence for each caution; none where the runs are of one model, data set and density.
    """
    found = []
    losses = {row.name: row.dense["loss"] for row in rows if "loss" in row.dense}
    most = _TOLERANCE if len({row.device for row in rows}) < 2 else ELSEWHERE
    if losses and max(losses.values()) - min(losses.values()) > most:
        values = ", ".join(f"{name} {loss:.4f}" for name, loss in losses.items())
        found.append(
            f"the dense models differ in loss ({values}): these runs are not of one model and data set."
        )
    densities = [row.density for row in rows if row.density is not None]
    if densities and max(densities) - min(densities) > _ROUNDING:
        found.append("the runs have different densities: compare losses within one density only.")
    return found


def _row(name: str, report: Mapping[str, Any]) -> Comparison:
    """Read one report."""
    metrics = report.get("evaluation", {})
    if not metrics.get("pruned"):
        raise SecateurError(
            f"the report of '{name}' has no metrics of a pruned model: let the run finish, or evaluate it "
            f"with secateur evaluate {name}."
        )
    return Comparison(
        name=name,
        method=report.get("method"),
        density=report.get("density", {}).get("overall"),
        metrics=metrics["pruned"],
        dense=metrics.get("dense", {}),
        start=metrics.get("start", {}),
        seconds=report.get("seconds", {}).get("total"),
        seed=report.get("seed"),
        device=report.get("device"),
    )
