"""What a run made of a model: its mask, the kept weights that it changed, and statistics of BatchNorm."""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.export.apply import Applied, apply_mask, match_layers, read_mask

_WEIGHTS, _STATISTICS, _REPORT = "weights.safetensors", "statistics.safetensors", "report.json"


def apply_outcome(model: nn.Module, folder: str | Path) -> Applied:
    """Apply a run to the model that it began with, in place: zeros, weights that it refitted, statistics.

    Everything is checked before anything is changed.

    Args:
        model: the trained network.
        folder: of the run: mask.safetensors, weights.safetensors where kept weights were changed, and
            statistics.safetensors where those of BatchNorm layers were.

    Returns:
        The mask as it was applied.

    Raises:
        SecateurError: the run is of another model, or its files are damaged or not all there.
    """
    path = Path(folder) / _WEIGHTS
    _check_complete(Path(folder))
    mask = read_mask(folder)
    layers = {layer.name: layer for layer in match_layers(model, mask)}
    weights = _read(path) if path.is_file() else {}
    for name, values in weights.items():
        if name not in layers or tuple(values.shape) != layers[name].shape:
            raise SecateurError(
                f"'{path}' belongs to another model: there is no pruned layer '{name}' {list(values.shape)}."
            )
        if bool(values.masked_select(~mask[name].to(values.device)).count_nonzero()):
            raise SecateurError(f"'{path}' and the mask beside it are not of one run: copy the run again.")
    statistics = _statistics(model, Path(folder) / _STATISTICS)
    applied = apply_mask(model, mask)
    with torch.no_grad():
        for name, values in weights.items():
            layers[name].write(values)
        for buffer, values in statistics:
            buffer.copy_(values)
    return applied


def _check_complete(folder: Path) -> None:
    """Refuse a run whose report, where it can be read, speaks of a file that is not there."""
    try:
        report = json.loads((folder / _REPORT).read_text(encoding="utf-8"))
        parts = {_WEIGHTS: report["weights"] != "mask only", _STATISTICS: "recalibration" in report}
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name, wanted in parts.items():
        if wanted and not (folder / name).is_file():
            raise SecateurError(f"'{folder}' holds no {name}, which its run wrote: copy the run again.")


def _statistics(model: nn.Module, path: Path) -> list[tuple[Tensor, Tensor]]:
    """Give each buffer of the model that a run changed, and what it is set to."""
    found, buffers = [], dict(model.named_buffers())
    for key, values in (_read(path) if path.is_file() else {}).items():
        if key not in buffers or buffers[key].shape != values.shape:
            raise SecateurError(
                f"'{path}' belongs to another model: there is no buffer '{key}' {list(values.shape)}."
            )
        found.append((buffers[key], values))
    return found


def _read(path: Path) -> dict[str, Tensor]:
    """Read tensors by name."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise SecateurError(f"'{path}' is damaged ({error}): copy the run again.") from error
