"""Listen to the inputs of layers while a model runs."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.core.errors import SecateurError
from secateur.core.inputs import Inputs
from secateur.core.layer import Layer, to_exclude
from secateur.core.patches import Patches

Listener = Callable[[str, Inputs], None]

_PRODUCTS = {torch.nn.functional.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, Tensor.mm}


@contextmanager
def listening(layers: Sequence[Layer], listener: Listener) -> Iterator[None]:
    """Call a listener with the inputs of each layer whenever it runs.

    Modules are hooked. Experts are no modules: their mixture is told to run them one by one, and the
    matrix products with their slices of its parameters are watched.

    Args:
        layers: the layers.
        listener: called with the layer's name and its inputs, without gradients.

    Yields:
        Nothing; afterwards nothing listens.
    """
    experts = [layer for layer in layers if layer.slot is not None]
    with ExitStack() as stack:
        for layer in layers:
            if layer.slot is None:
                for module in layer.modules:
                    hook = partial(_hear, listener, layer.name)
                    handle = module.register_forward_hook(hook, with_kwargs=True)
                    stack.callback(handle.remove)
        if experts:
            for module in {id(layer.modules[0]): layer.modules[0] for layer in experts}.values():
                stack.enter_context(_one_by_one(module))
            stack.enter_context(_Watch(experts, listener))
        yield


def inputs_of(
    name: str, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor
) -> Inputs:
    """Say what a module was given.

    Args:
        name: the layer, for messages.
        module: the module.
        args: what it was called with.
        kwargs: likewise, by name.
        output: what it gave.

    Returns:
        Its inputs.

    Raises:
        SecateurError: a convolution was given one sample without a dimension that counts samples, or
            pads in a way that is not known.
    """
    x = next(iter((*args, *kwargs.values()))).detach()
    patches = Patches.of(module)
    if patches is None:
        return Inputs(x)
    if x.dim() != 2 + len(patches.kernel):
        raise SecateurError(
            f"layer '{name}' has inputs of the shape {list(x.shape)}, which has no dimension that counts "
            f"samples: {to_exclude(name)}"
        )
    return Inputs(x, patches.fitted(tuple(x.shape[2:]), tuple(output.shape[2:]), name))


def _hear(
    listener: Listener,
    name: str,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    output: Tensor,
) -> None:
    """Pass a module's inputs on."""
    listener(name, inputs_of(name, module, args, kwargs, output))


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
                self._listener(name, Inputs(args[0].detach()))
        return func(*args, **(kwargs or {}))


def _place(tensor: Tensor) -> tuple[int, int]:
    """Say where in memory a tensor begins."""
    return tensor.untyped_storage().data_ptr(), int(tensor.storage_offset())
