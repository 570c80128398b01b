"""Decoder layers that give what they gave before, and tell whether a model notices."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_SAMPLED = 2**16  # entries of a tensor that are compared


@contextmanager
def stubbed(modules: Sequence[nn.Module], state: Any) -> Iterator[None]:
    """Let modules give a state instead of what they compute.

    Args:
        modules: which.
        state: what each gives, a copy every time.

    Yields:
        Nothing; afterwards the modules are as they were.
    """
    before = [module.__dict__.get("forward") for module in modules]

    def stub(*_: Any, **__: Any) -> Any:
        return copied(state)  # a model may add to it in place

    try:
        for module in modules:
            module.forward = stub
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            if forward is not None:  # of whoever wrapped it
                module.forward = forward
            else:
                module.__dict__.pop("forward", None)


def copied(value: Any) -> Any:
    """Copy the tensors in what a module gives.

    Args:
        value: a tensor, or tuples, lists and dictionaries of them; anything else is not copied.

    Returns:
        The same, without gradients.
    """
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple | list):
        items = [copied(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    if type(value) is dict:
        return {key: copied(item) for key, item in value.items()}
    return value


def sampled(value: Any) -> list[Tensor]:
    """Take some entries of every tensor among a module's arguments.

    Args:
        value: the arguments.

    Returns:
        At most about 65,536 entries of each tensor, in the order in which they come.
    """
    if isinstance(value, Tensor):
        flat = value.detach().reshape(-1)
        # An odd step, so that not the same few features are taken at every position.
        return [flat[:: (flat.numel() // _SAMPLED) | 1].clone()]
    if isinstance(value, tuple | list):
        return [sample for item in value for sample in sampled(item)]
    if isinstance(value, dict):
        return [sample for item in value.values() for sample in sampled(item)]
    return []


def alike(ones: list[Tensor], others: list[Tensor]) -> bool:
    """Say whether two lists of tensors are the same, but for rounding that a GPU does in any order.

    Args:
        ones: what `sampled` gave.
        others: likewise.

    Returns:
        True where they are.
    """
    if len(ones) != len(others):
        return False
    for one, other in zip(ones, others, strict=True):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if not one.is_floating_point():
            if not torch.equal(one, other):
                return False
            continue
        a, b = one.double().nan_to_num(), other.double().nan_to_num()
        scale = float(b.abs().clamp(max=1e4).max()) if b.numel() else 0.0  # masks hold the lowest number
        if not torch.allclose(a, b, rtol=0.0, atol=16 * torch.finfo(one.dtype).eps * scale):
            return False
    return True
