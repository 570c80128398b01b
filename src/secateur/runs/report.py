"""The report of a run: the figures that were measured, and what made them."""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from secateur.core.device import device_name
from secateur.pruners import Pruner, Session
from secateur.runs.ending import Made

_PACKAGES = ("secateur", "torch", "transformers", "numpy", "numba", "safetensors")


def build_report(
    session: Session,
    pruner: Pruner,
    made: Made,
    density: float,
    evaluation: Mapping[str, Mapping[str, float]],
    notices: Sequence[str],
    *,
    seconds: float,
    flips: int,
    steps: int,
    reason: str,
) -> dict[str, Any]:
    """Put the figures of a run together.

    Args:
        session: what the pruner worked with; its seconds by activity are reported.
        pruner: the method.
        made: the mask found, and what was done to the network with it.
        density: the density asked for.
        evaluation: metrics of ``dense``, ``start`` and ``pruned``; where the network was refitted or
            recalibrated, also of what it was before that.
        notices: what the user was told.
        seconds: of the whole run.
        flips: weights in which the mask differs from the start.
        steps: steps done.
        reason: why the run ended.

    Returns:
        The report, ready for JSON.
    """
    task, mask = session.task, made.mask
    report = {
        "format": "secateur-report-1",
        "density": {"asked": density, "overall": mask.density, "layers": mask.densities},
        "evaluation": {
            **evaluation,
            "samples": task.size("evaluation"),
            "calibration_samples": task.size("calibration"),
            "disjoint": task.disjoint,
        },
        "seconds": {"total": seconds, **session.seconds},
        "flips": flips,
        "steps": steps,
        "reason": reason,
        "seed": session.seed,
        "method": pruner.part_name,
        "settings": repr(pruner),
        "grouping": session.budget.grouping,
        "weights": _weights(pruner, made),
        "versions": versions(),
        "device": device_name(session.network.device),
        "notices": list(notices),
    }
    if made.refit_flips:
        report["refit_flips"] = made.refit_flips
    if made.recalibrated is not None:
        report["recalibration"] = asdict(made.recalibrated)
    return report


def _weights(pruner: Pruner, made: Made) -> str:
    """Say what became of the kept weights."""
    if made.refit is not None:
        return f"refit by {made.refit!r}"
    return "updated with the mask" if pruner.updates else "mask only"


def versions() -> dict[str, str]:
    """Give the versions of what decides the numbers.

    Returns:
        Versions by package, and that of Python.
    """
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found
