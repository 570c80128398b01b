"""Whether layers compute with the weights that they store."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.core.errors import SecateurError
from secateur.core.layer import Layer, to_exclude
from secateur.core.modes import evaluating
from secateur.core.task import Batch, Task

# Where the layers come from that compute as they say.
_PLAIN = ("torch.nn.modules.", "transformers.pytorch_utils")


def check_used(model: nn.Module, task: Task, batch: Batch, layers: Sequence[Layer]) -> None:
    """See that modules with a forward of their own multiply with the weight they store.

    Weight standardisation, for example, computes another weight in every pass, in which what is pruned is
    not 0. Modules of torch and transformers as they are need no look; where there are no others, nothing is
    run.

    Args:
        model: the network.
        task: how it is run.
        batch: a sample or two.
        layers: which layers.

    Raises:
        SecateurError: a layer computes with something else.
    """
    own = [(x, module) for x in layers if x.slot is None for module in x.modules if _is_own(module)]
    if not own:
        return
    watch = _Watch()
    with ExitStack() as stack:
        for _, module in own:
            stack.callback(module.register_forward_pre_hook(watch.enter).remove)
            stack.callback(module.register_forward_hook(watch.leave).remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(watch)
        task.forward(model, batch)
    for layer, module in own:
        if module in watch.called - watch.used:
            raise SecateurError(
                f"layer '{layer.name}' computes its weight anew in every pass (weight standardisation, for "
                "example), so that pruned weights would not stay 0: store what it computes in a plain layer "
                f"first, or {to_exclude(layer.name)}"
            )


def _is_own(module: nn.Module) -> bool:
    """Say whether a module computes in a way of its own."""
    kind = type(module)
    plain = next(base for base in kind.__mro__ if base.__module__.startswith(_PLAIN))
    return any(
        name in vars(module) or getattr(kind, name, None) is not getattr(plain, name, None)
        for name in ("forward", "_conv_forward")
    )


class _Watch(TorchFunctionMode):
    """Sees which weights modules multiply with: any function that is given the stored numbers counts."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[nn.Module] = set()
        self.used: set[nn.Module] = set()
        self._inside: list[nn.Module] = []

    def enter(self, module: nn.Module, *_: Any) -> None:
        """Note that a module begins."""
        self.called.add(module)
        self._inside.append(module)

    def leave(self, *_: Any) -> None:
        """Note that a module ends."""
        self._inside.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at a call, and carry it out."""
        given = (*args, *(kwargs or {}).values())
        out = func(*args, **(kwargs or {}))
        if self._inside and func in _PRODUCTS and self._inside[-1] not in self.used:
            module: Any = self._inside[-1]
            if any(_same(value, module.weight) for value in given if isinstance(value, Tensor)):
                self.used.add(module)
        return out


_PRODUCTS = {
    torch.nn.functional.linear, torch.conv1d, torch.conv2d, torch.conv3d, torch.matmul, torch.mm, torch.addmm,
    torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d, Tensor.matmul,
    Tensor.__matmul__, Tensor.__rmatmul__, Tensor.mm, Tensor.addmm, torch.einsum,
}  # fmt: skip


def _same(value: Tensor, weight: Tensor) -> bool:
    """Say whether a tensor is a weight, or its transpose, if in another precision."""
    # Bit for bit: to standardise what is standardised already changes little but rounding.
    ways = (value, value.mT) if value.dim() == 2 else (value,)
    return any(way is weight or torch.equal(way, weight.to(way)) for way in ways if way.shape == weight.shape)
