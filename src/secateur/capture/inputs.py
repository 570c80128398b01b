"""Listen to the inputs of layers while a model runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.core.layer import Layer

Listener = Callable[[str, Float[Tensor, "t i"]], None]

_PRODUCTS = {torch.nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm}


@contextmanager
def listening(layers: Sequence[Layer], listener: Listener) -> Iterator[None]:
    """Call a listener with the inputs of each layer whenever it runs.

    Modules are hooked. Experts are no modules: their mixture is told to run them one by one, and the
    matrix products with their slices of its parameters are watched.

    Args:
        layers: the layers.
        listener: called with the layer's name and its inputs, one row a position, without gradients.

    Yields:
        Nothing; afterwards nothing listens.
    """
    experts = [layer for layer in layers if layer.slot is not None]
    with ExitStack() as stack:
        for layer in layers:
            if layer.slot is None:
                for module in layer.modules:
                    hook = partial(_hear, listener, layer.name)
                    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
        if experts:
            for module in {id(layer.modules[0]): layer.modules[0] for layer in experts}.values():
                stack.enter_context(_one_by_one(module))
            stack.enter_context(_Watch(experts, listener))
        yield


def _hear(listener: Listener, name: str, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Pass a module's inputs on."""
    x = next(iter((*args, *kwargs.values()))).detach()
    listener(name, x.reshape(-1, x.shape[-1]))


@contextmanager
def _one_by_one(module: nn.Module) -> Iterator[None]:
    """Have a mixture multiply with one expert after the other."""
    config: Any = getattr(module, "config", None)
    chosen = getattr(config, "_experts_implementation", None)
    if chosen is None:
        yield
        return
    config._experts_implementation = "eager"
    try:
        yield
    finally:
        config._experts_implementation = chosen


class _Watch(TorchFunctionMode):
    """Passes on what the slices of certain parameters are multiplied with."""

    def __init__(self, experts: Sequence[Layer], listener: Listener) -> None:
        super().__init__()
        self._listener = listener
        self._names = {_place(layer.weight): layer.name for layer in experts}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Look at a call, and carry it out."""
        if func in _PRODUCTS and len(args) > 1 and isinstance(args[1], Tensor):
            name = self._names.get(_place(args[1]))
            if name is not None:
                self._listener(name, args[0].detach().reshape(-1, args[0].shape[-1]))
        return func(*args, **(kwargs or {}))


def _place(tensor: Tensor) -> tuple[int, int]:
    """Say where in memory a tensor begins."""
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())
