"""What a run made of a model: its mask, and the kept weights that it changed."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.export.apply import Applied, apply_mask, match_layers, read_mask

_WEIGHTS = "weights.safetensors"


def apply_outcome(model: nn.Module, folder: str | Path) -> Applied:
    """Apply a run to the model that it began with, in place: zeros, then the weights that it refitted.

    Everything is checked before anything is changed.

    Args:
        model: the trained network.
        folder: of the run: mask.safetensors, and weights.safetensors where kept weights were changed.

    Returns:
        The mask as it was applied.

    Raises:
        SecateurError: the run is of another model, or its files are damaged.
    """
    path = Path(folder) / _WEIGHTS
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
    applied = apply_mask(model, mask)
    with torch.no_grad():
        for name, values in weights.items():
            layers[name].weight.copy_(values)
    return applied


def _read(path: Path) -> dict[str, Tensor]:
    """Read weights by layer."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise SecateurError(f"'{path}' is damaged ({error}): copy the run again.") from error
