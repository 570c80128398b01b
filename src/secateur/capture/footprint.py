"""What one sample takes in memory, measured before a run."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.capture.inputs import listening
from secateur.capture.live import LiveBytes, storages
from secateur.core.inputs import Inputs
from secateur.core.layer import Layer
from secateur.core.modes import differentiable, evaluating
from secateur.core.task import Batch, Task


@dataclass(frozen=True)
class Footprint:
    """Bytes that one sample takes.

    Attributes:
        graph: of autograd's graph in a forward and backward pass, and of the outputs and their gradient.
        forward: of a forward pass alone and the loss: the sample, the most that tensors took meanwhile, and a
            copy of the widest inputs of a layer.
        outputs: of the outputs alone.
        positions: positions that one sample gives a layer, by layer.
        inputs: numbers that it gives a layer, by layer: those of a convolution are fewer than its patches'.
    """

    graph: int
    forward: int
    outputs: int
    positions: dict[str, int]
    inputs: dict[str, int]


def footprint(model: nn.Module, task: Task, batch: Batch, layers: Sequence[Layer]) -> Footprint:
    """Pass a batch forward twice, and count what autograd keeps of it, and what it takes without autograd.

    Weights are not counted.

    Args:
        model: the network.
        task: the loss.
        batch: the samples, one or two.
        layers: whose gradients are wanted.

    Returns:
        The bytes a sample.
    """
    own = {storage.data_ptr() for storage in storages((*model.parameters(), *model.buffers()))}
    kept: dict[int, int] = {}
    positions: Counter[str] = Counter()
    numbers: Counter[str] = Counter()

    def keep(tensor: Tensor) -> Tensor:
        kept.update((s.data_ptr(), s.nbytes()) for s in storages([tensor]) if s.data_ptr() not in own)
        return tensor

    def give(tensor: Any) -> Any:
        return tensor

    def hear(name: str, inputs: Inputs) -> None:
        positions[name] += inputs.positions
        numbers[name] += inputs.numbers

    with (
        differentiable(model, [layer.parameter for layer in layers]),
        torch.autograd.graph.saved_tensors_hooks(keep, give),
        listening(layers, hear),
    ):
        outputs = task.forward(model, batch)
        losses = task.losses(outputs, batch.targets)
    size = max(1, losses.numel())
    each = outputs.numel() * max(4, outputs.element_size())
    with evaluating(model), torch.no_grad(), LiveBytes() as live:
        task.losses(task.forward(model, batch), batch.targets)
    graph = sum(kept.values()) + 3 * each  # the outputs; their gradient and the loss's on the way back
    forward = _bytes(batch.inputs) + live.peak + 4 * max(numbers.values(), default=0)
    return Footprint(
        graph // size,
        forward // size,
        each // size,
        {name: -(-count // size) for name, count in positions.items()},
        {name: -(-count // size) for name, count in numbers.items()},
    )


def _bytes(inputs: Any) -> int:
    """Count the bytes of a tensor, or of several by name."""
    tensors = inputs.values() if isinstance(inputs, Mapping) else (inputs,)
    return sum(x.numel() * x.element_size() for x in tensors if isinstance(x, Tensor))
