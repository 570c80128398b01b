"""Sums over the inputs of layers, of as many samples as one likes: nothing is held of any of them."""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.capture.inputs import listening
from secateur.core.errors import SecateurError
from secateur.core.layer import Layer, to_exclude
from secateur.core.modes import evaluating
from secateur.core.moments import Moments
from secateur.core.task import Batch, Task, check_losses


def moments(
    model: nn.Module, task: Task, batches: Iterable[Batch], layers: Sequence[Layer], *, gram: bool = False
) -> dict[str, Moments]:
    """Sum over the inputs of layers, in forward passes.

    Memory: the forward pass of one batch, and a layer's sums: two numbers an input; with Gram matrices,
    in^2 more. A loss that is NaN or infinite is refused, and a layer that no data reach unless it is one
    of several experts.

    Args:
        model: the network.
        task: how it is run.
        batches: the samples, in batches as large as memory takes.
        layers: whose inputs.
        gram: whether products of different inputs are wanted.

    Returns:
        The sums by layer; an expert that no position came to has sums of 0.
    """
    found: dict[str, Moments] = {}

    def add(name: str, x: Float[Tensor, "t i"]) -> None:
        new = Moments.of(x, gram)
        found[name] = found[name] + new if name in found else new

    with torch.no_grad(), evaluating(model), listening(layers, add):
        for batch in batches:
            losses = task.losses(task.forward(model, batch), batch.targets)
            check_losses(losses, "calibration samples", batch.index)
    # Some positions come to some experts; where none is heard of, their products are not what is listened to.
    unheard = _unheard(layers, found)
    return {layer.name: found.get(layer.name) or _nothing(layer, gram, unheard) for layer in layers}


def _unheard(layers: Sequence[Layer], found: dict[str, Moments]) -> set[int]:
    """Find the parameters all experts of which are among the layers, and none of them has inputs."""
    silent: Counter[int] = Counter()
    for layer in layers:
        if layer.slot is not None and layer.name not in found:
            silent[id(layer.parameter)] += 1
    return {id(layer.parameter) for layer in layers if silent[id(layer.parameter)] == len(layer.parameter)}


def _nothing(layer: Layer, gram: bool, unheard: set[int]) -> Moments:
    """Give the sums of an expert that is never used; refuse any other layer that is not."""
    if layer.slot is None or id(layer.parameter) in unheard:
        pattern = layer.name if layer.slot is None else f"{layer.parameter_name}.*"
        raise SecateurError(f"layer '{layer.name}' is never reached by the data: {to_exclude(pattern)}")
    return Moments.of(layer.weight.detach()[:0], gram)
