"""Whether layers compute with the weights that they store."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.core.errors import SecateurError
from secateur.core.layer import Layer, is_transposed, to_exclude
from secateur.core.modes import evaluating
from secateur.core.task import Batch, Task

_PLAIN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


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
        for layer, module in own:
            enter = partial(watch.enter, layer)
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(watch.leave).remove)
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        stack.enter_context(watch)
        task.forward(model, batch)
    for name in watch.called - watch.used:
        raise SecateurError(
            f"layer '{name}' computes its weight anew in every pass (weight standardisation, for example), "
            f"so that pruned weights would not stay 0: store what it computes in a plain layer first, or "
            f"{to_exclude(name)}"
        )


def _is_own(module: nn.Module) -> bool:
    """Say whether a module computes in a way of its own."""
    if is_transposed(module):
        return False
    kind = type(module)
    plain = next(base for base in _PLAIN if isinstance(module, base))
    return any(getattr(kind, n, None) is not getattr(plain, n, None) for n in ("forward", "_conv_forward"))


class _Watch(TorchFunctionMode):
    """Sees which weights modules multiply with: any function that is given the stored numbers counts."""

    def __init__(self) -> None:
        super().__init__()
        self.called: set[str] = set()
        self.used: set[str] = set()
        self._inside: list[Layer] = []

    def enter(self, layer: Layer, *_: Any) -> None:
        """Note that a module begins."""
        self.called.add(layer.name)
        self._inside.append(layer)

    def leave(self, *_: Any) -> None:
        """Note that a module ends."""
        self._inside.pop()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at a call, and carry it out."""
        given = (*args, *(kwargs or {}).values())
        out = func(*args, **(kwargs or {}))
        if self._inside and func in _PRODUCTS and self._inside[-1].name not in self.used:
            layer = self._inside[-1]
            if any(_same(value, layer.parameter) for value in given if isinstance(value, Tensor)):
                self.used.add(layer.name)
        return out


_PRODUCTS = {
    torch.nn.functional.linear, torch.conv1d, torch.conv2d, torch.conv3d, torch.matmul, torch.mm, torch.addmm,
    torch.nn.functional.conv1d, torch.nn.functional.conv2d, torch.nn.functional.conv3d, Tensor.matmul,
    Tensor.__matmul__, Tensor.mm, torch.einsum,
}  # fmt: skip


def _same(value: Tensor, weight: Tensor) -> bool:
    """Say whether a tensor holds a weight's numbers, if in another precision."""
    if value is weight:
        return True
    if value.shape != weight.shape:
        return False
    return bool(torch.allclose(value.double(), weight.double(), rtol=1e-2, atol=0.0))
