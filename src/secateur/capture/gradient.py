"""The mean gradient alone: one forward and one backward pass, nothing recorded."""

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.layer import Layer
from secateur.core.modes import differentiable, multiplying, widened
from secateur.core.task import Batch, Task, check_losses


def mean_gradient(
    model: nn.Module,
    task: Task,
    batch: Batch,
    layers: Sequence[Layer],
    bfloat16: bool = False,
    compare: Callable[[Tensor], Tensor] | None = None,
) -> tuple[float, dict[str, Float[Tensor, "o i"]]]:
    """Differentiate the mean loss of a batch with respect to every layer's weight.

    `.grad` is not touched, and the model is in evaluation mode meanwhile. Memory: autograd's graph,
    and one gradient a layer.

    Args:
        model: the network.
        task: the loss.
        batch: the samples.
        layers: the layers.
        bfloat16: multiply matrices in bfloat16 (torch.autocast); weights, gradients and sums
            over the batch stay in float32.
        compare: outputs -> what is differentiated in the place of each sample's loss; None: the loss.

    Returns:
        The mean loss, nats a sample, and the gradients of those layers that the batch reached, in
        float32 where weights are in half precision.

    Raises:
        SecateurError: the loss is NaN or infinite, or depends on no layer.
    """
    weights = list({id(layer.parameter): layer.parameter for layer in layers}.values())
    with differentiable(model, weights):
        with multiplying(weights[0].device, bfloat16):
            outputs = task.forward(model, batch)
        outputs = outputs.float() if bfloat16 else outputs
        losses = task.losses(outputs if compare is None else outputs.detach(), batch.targets)
        loss = (losses if compare is None else compare(outputs)).mean()
        found = torch.autograd.grad(loss, weights, allow_unused=True) if loss.requires_grad else ()
        value = float(losses.detach().double().mean())  # of finite losses it is finite
        if not math.isfinite(value):
            check_losses(losses.detach(), "calibration samples", batch.index)
    by_parameter = dict(zip(map(id, weights), found, strict=False))
    reached = {
        layer.name: layer.view(g)
        for layer in layers
        if (g := by_parameter.get(id(layer.parameter))) is not None
    }
    if not reached:
        raise SecateurError(
            "the loss of a batch depends on no layer to be pruned: the model's forward detaches its outputs, "
            "or is run without gradients (torch.no_grad, torch.inference_mode)."
        )
    return value, {name: widened(g) for name, g in reached.items()}
