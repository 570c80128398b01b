"""Slow and obvious ways to the truth, by plain autograd, one sample at a time."""

from collections.abc import Callable, Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.core.layer import Layer
from secateur.core.task import Batch, Task


def sample_gradients(
    model: nn.Module, task: Task, batch: Batch, layers: Sequence[Layer], targets: Tensor | None = None
) -> dict[str, Float[Tensor, "s o i"]]:
    """Differentiate each sample's loss by itself.

    Args:
        model: the network.
        task: the loss.
        batch: the samples.
        layers: by whose weights.
        targets: labels to use instead of the batch's.

    Returns:
        The gradients by layer.
    """
    labels = batch.targets if targets is None else targets
    rows: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}
    for s in range(batch.size):
        one = Batch(batch.inputs[s : s + 1], labels[s : s + 1])
        loss = task.losses(task.forward(model, one), one.targets).sum()
        found = torch.autograd.grad(loss, [layer.parameter for layer in layers])
        for layer, gradient in zip(layers, found, strict=True):
            rows[layer.name].append(layer.view(gradient))
    return {name: torch.stack(pieces) for name, pieces in rows.items()}


def mean_loss_of(
    model: nn.Module, task: Task, batch: Batch, layers: Sequence[Layer]
) -> Callable[[Tensor], Tensor]:
    """Give the mean loss as a function of all the layers' weights in one vector.

    Args:
        model: the network.
        task: the loss.
        batch: the samples.
        layers: whose weights.

    Returns:
        The function.
    """
    sizes = [layer.size for layer in layers]

    def loss(vector: Tensor) -> Tensor:
        pieces = vector.split(sizes)
        values = {
            layer.parameter_name: layer.stored(piece.reshape(layer.shape))
            for layer, piece in zip(layers, pieces, strict=True)
        }
        outputs = torch.func.functional_call(model, values, (batch.inputs,))
        return task.losses(outputs, batch.targets).mean()

    return loss


def flatten(matrices: Mapping[str, Tensor]) -> Tensor:
    """Put the layers' matrices into one vector.

    Args:
        matrices: by layer.

    Returns:
        The vector, row by row, layer by layer.
    """
    return torch.cat([m.reshape(-1) for m in matrices.values()])
