"""Masks as parameters are stored: transposed where those are, the experts of a mixture together."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.layer import Layer
from secateur.core.mask import Mask


@dataclass(frozen=True, eq=False)
class StoredMask:
    """The mask of one parameter, in which several layers may lie.

    Attributes:
        layers: the layers.
        keep: True = kept; shaped as the parameter. What lies in none of the layers is kept.
    """

    layers: tuple[Layer, ...]
    keep: Bool[Tensor, "*shape"]

    @property
    def key(self) -> str:
        """What the modules call the parameter."""
        return self.layers[0].key

    @property
    def modules(self) -> tuple[nn.Module, ...]:
        """The modules that use it."""
        return self.layers[0].modules

    def alive(self) -> Iterator[tuple[str, int]]:
        """Count the pruned weights that are not 0 in what each module computes with.

        Yields:
            Layers that have any, and how many.
        """
        for module in self.modules:
            parameter = getattr(module, self.key).detach()
            keep = self.keep.to(parameter.device)
            for layer in self.layers:
                count = int(torch.count_nonzero(layer.view(parameter)[~layer.view(keep)]))
                if count:
                    yield layer.name, count

    @torch.no_grad()
    def zero(self) -> None:
        """Write zeros where nothing is kept."""
        parameter = self.layers[0].parameter
        parameter.masked_fill_(~self.keep.to(parameter.device), 0)


def by_parameter(layers: Iterable[Layer], mask: Mask) -> list[StoredMask]:
    """Gather the masks of layers by the parameters that they lie in.

    Args:
        layers: the layers, all of which the mask has.
        mask: the mask.

    Returns:
        A mask for each parameter, on its device, in the order of the layers.
    """
    groups: dict[tuple[int, str], list[Layer]] = {}
    for layer in layers:
        groups.setdefault((id(layer.modules[0]), layer.key), []).append(layer)
    gathered = []
    for group in groups.values():
        keep = torch.ones_like(group[0].parameter, dtype=torch.bool, memory_format=torch.contiguous_format)
        for layer in group:
            layer.view(keep).copy_(mask[layer.name])
        gathered.append(StoredMask(tuple(group), keep))
    return gathered


def check_state(state: Mapping[str, Tensor], mask: Mask, layers: Iterable[Layer]) -> None:
    """See that every pruned weight is 0 in a state_dict.

    Args:
        state: tensors as the model stores them, by name.
        mask: the mask.
        layers: all layers of the model.

    Raises:
        SecateurError: one is not, or the mask is another model's.
    """
    known = {layer.name: layer for layer in layers}
    for name, matrix in mask.items():
        layer = known.get(name)
        key = layer.parameter_name if layer is not None else name
        stored = state.get(key)
        if layer is None or stored is None or layer.view(stored).shape != matrix.shape:
            raise SecateurError(
                f"the mask belongs to another model: the model has no '{key}' {list(matrix.shape)}."
            )
        alive = int(torch.count_nonzero(layer.view(stored)[~matrix.to(stored.device)]))
        if alive:
            raise SecateurError(
                f"{alive} pruned weights of layer '{name}' are not 0 in the model: apply the mask before "
                "saving."
            )
