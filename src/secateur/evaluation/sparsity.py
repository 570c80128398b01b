"""How many weights are left, layer by layer, and whether whole rows or columns are gone."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.layer import Layer, find_layers


@dataclass(frozen=True)
class LayerSparsity:
    """The kept weights of a layer.

    Attributes:
        name: the layer; ``"total"`` for all of them.
        outputs: rows of the weight matrix.
        inputs: columns of it.
        kept: weights that are kept.
        weights: all of its weights.
        empty_rows: outputs with no kept weight: what structured removal could take away.
        empty_columns: inputs with no kept weight, likewise.
    """

    name: str
    outputs: int
    inputs: int
    kept: int
    weights: int
    empty_rows: int
    empty_columns: int

    @property
    def density(self) -> float:
        """The fraction kept."""
        return self.kept / self.weights

    def as_record(self) -> dict[str, Any]:
        """Turn the row into a dict.

        Returns:
            Its fields and the density.
        """
        return {**asdict(self), "density": self.density}


def sparsity(
    subject: nn.Module | Mapping[str, Bool[Tensor, "o i"]], layers: Sequence[Layer] | None = None
) -> list[LayerSparsity]:
    """Count what is kept: the True entries of a mask, or the weights of a model that are not 0.

    Args:
        subject: a mask, or a model.
        layers: the layers of the model to look at; None: all its linear layers. Not for a mask.

    Returns:
        A row for each layer, in order, and the total last.

    Raises:
        SecateurError: there are no layers.
    """
    if isinstance(subject, nn.Module):
        chosen = find_layers(subject) if layers is None else layers
        kept = {layer.name: layer.weight.detach() != 0 for layer in chosen}
    else:
        kept = dict(subject)
    if not kept:
        raise SecateurError("there are no layers to count the weights of.")
    rows = [_row(name, matrix) for name, matrix in kept.items()]
    total = LayerSparsity(
        "total",
        *(
            sum(getattr(row, field) for row in rows)
            for field in ("outputs", "inputs", "kept", "weights", "empty_rows", "empty_columns")
        ),
    )
    return [*rows, total]


def _row(name: str, kept: Bool[Tensor, "o i"]) -> LayerSparsity:
    """Count one layer."""
    rows, columns = kept.any(1), kept.any(0)
    return LayerSparsity(
        name,
        *kept.shape,
        kept=int(torch.count_nonzero(kept)),
        weights=kept.numel(),
        empty_rows=int((~rows).sum()),
        empty_columns=int((~columns).sum()),
    )
