"""Modes of a model: evaluation, gradients, precision."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

HALF = (torch.float16, torch.bfloat16)


def widened(x: Tensor) -> Tensor:
    """Give half precision in float32: 8 or 11 bits are too few for sums, and for a logarithm.

    Args:
        x: numbers of any kind.

    Returns:
        The same; itself where it is not in half precision.
    """
    return x.float() if x.dtype in HALF else x


def multiplying(device: torch.device, bfloat16: bool) -> AbstractContextManager[Any]:
    """Multiply matrices in bfloat16 for a while (torch.autocast), or as the weights say.

    Args:
        device: where.
        bfloat16: whether.

    Returns:
        The context. Casts of weights are not kept, as weights are written between passes.
    """
    return torch.autocast(device.type, torch.bfloat16, cache_enabled=False) if bfloat16 else nullcontext()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model in evaluation mode, and afterwards each module in the mode it was in.

    Args:
        model: the network.

    Yields:
        Nothing.
    """
    training = [module for module in model.modules() if module.training]
    try:
        model.eval()
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def differentiable(model: nn.Module, weights: Sequence[Tensor], backward: bool = True) -> Iterator[None]:
    """Put a model in evaluation mode and let gradients reach some weights, frozen ones too.

    Args:
        model: the network.
        weights: the weights.
        backward: whether gradients are wanted at all.

    Yields:
        Nothing; afterwards everything is as it was.
    """
    frozen = [weight for weight in weights if backward and not weight.requires_grad]
    try:
        for weight in frozen:
            weight.requires_grad_(True)
        with evaluating(model), torch.set_grad_enabled(backward):
            yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
