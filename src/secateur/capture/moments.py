"""Sums over the inputs of layers, of as many samples as one likes: nothing is held of any of them."""

from collections.abc import Iterable, Sequence

import torch
from torch import nn

from secateur.capture.inputs import listening
from secateur.capture.sums import Sums
from secateur.core.layer import Layer
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
    sums = Sums(gram, {layer.name for layer in layers})
    with torch.no_grad(), evaluating(model), listening(layers, sums.add):
        for batch in batches:
            losses = task.losses(task.forward(model, batch), batch.targets)
            check_losses(losses, "calibration samples", batch.index)
    return sums.close(layers)
