"""The size of scores and gradients, and whether they have one."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.errors import SecateurError


def width(tensor: Tensor) -> torch.dtype:
    """Give the type that sums of a tensor are kept in.

    Args:
        tensor: the tensor.

    Returns:
        Its own, but float32 for half precision.
    """
    return torch.promote_types(tensor.dtype, torch.float32)


def mean_size(tensors: Sequence[Tensor]) -> Float[Tensor, ""]:
    """Give the mean absolute value of several tensors together.

    Args:
        tensors: at least one.

    Returns:
        The mean, on their device; the least positive number where it is 0, to divide by.
    """
    total = sum(tensor.to(width(tensor)).abs().sum() for tensor in tensors)
    assert isinstance(total, Tensor)
    mean = total / sum(tensor.numel() for tensor in tensors)
    return mean.clamp(min=torch.finfo(mean.dtype).tiny)


def check_finite(gradients: Mapping[str, Tensor]) -> None:
    """Refuse gradients that are not finite: as scores, NaN would rank highest.

    Args:
        gradients: sums of gradients, by layer.

    Raises:
        SecateurError: one has NaN or infinity in it.
    """
    for name, gradient in gradients.items():
        if not bool(torch.isfinite(gradient.sum())) and not bool(torch.isfinite(gradient).all()):
            raise SecateurError(
                f"the gradient of layer '{name}' is NaN or infinite though the loss is finite: look for a "
                "division by zero or the root of zero in the model, or load it in float32 or bfloat16."
            )
