"""The exact Hessian of the mean loss, by double backward."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from secateur.core.block import Block
from secateur.core.layer import Layer
from secateur.core.modes import evaluating
from secateur.core.task import Batch, Task


def _mean_loss(model: nn.Module, task: Task, batch: Batch, weights: dict[str, Tensor]) -> Float[Tensor, ""]:
    """Compute the mean loss as a function of some of the weights."""
    outputs = torch.func.functional_call(_Forward(model, task, batch), weights, ())
    return task.losses(outputs, batch.targets).mean()


class _Forward(nn.Module):
    """The task's forward pass as a module, so that its weights can be replaced by a call."""

    def __init__(self, model: nn.Module, task: Task, batch: Batch) -> None:
        super().__init__()
        self.model, self._task, self._batch = model, task, batch

    def forward(self) -> Tensor:
        """Run the model on the batch."""
        return self._task.forward(self.model, self._batch)


@contextmanager
def _twice_differentiable(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, with attention by products: faster kernels have one derivative."""
    with evaluating(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        yield


def hessian(
    model: nn.Module, task: Task, batch: Batch, layers: Sequence[Layer], block: Block
) -> Float[Tensor, "n n"]:
    """Differentiate the mean loss over a block twice, by double backward."""
    keys = {layer.name: f"model.{layer.parameter_name}" for layer in layers}
    weights = {layer.name: layer.weight.detach() for layer in layers if layer.name in block.indices}
    stored = {layer.name: layer.stored for layer in layers}

    def loss(values: Tensor) -> Tensor:
        replaced = {}
        for name, piece in block.split(values).items():
            flat = weights[name].reshape(-1).index_put((block.indices[name],), piece)
            replaced[keys[name]] = stored[name](flat.reshape(weights[name].shape))
        return _mean_loss(model, task, batch, replaced)

    values = block.gather(weights).requires_grad_(True)
    with _twice_differentiable(model):
        (gradient,) = torch.autograd.grad(loss(values), values, create_graph=True)
        eye = torch.eye(values.numel(), dtype=values.dtype, device=values.device)
        rows = [
            torch.autograd.grad(gradient, values, piece, retain_graph=True, is_grads_batched=True)[0]
            for piece in eye.split(64)
        ]
    matrix = torch.cat(rows)
    return (matrix + matrix.T) / 2


def hessian_product(
    model: nn.Module, task: Task, batch: Batch, layers: Sequence[Layer], displacement: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Multiply the Hessian of the mean loss with a displacement of the weights."""
    keys = {layer.name: f"model.{layer.parameter_name}" for layer in layers}
    weights = {layer.name: layer.weight.detach().clone().requires_grad_(True) for layer in layers}
    with _twice_differentiable(model):
        stored = {keys[layer.name]: layer.stored(weights[layer.name]) for layer in layers}
        loss = _mean_loss(model, task, batch, stored)
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        along = torch.stack(
            [
                (g * displacement[name]).sum()
                for name, g in zip(weights, gradients, strict=True)
                if name in displacement
            ]
        ).sum()
        products = torch.autograd.grad(along, list(weights.values()), materialize_grads=True)
    return {name: p.detach() for name, p in zip(weights, products, strict=True)}
