"""A prunable weight of a network, seen as a matrix [out, in]."""

import fnmatch
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from secateur.core.errors import SecateurError, nearest
from secateur.core.patches import Patches, is_convolution


@dataclass(frozen=True, eq=False)
class Layer:
    """A prunable weight matrix, and every module that uses it.

    The matrix is the parameter of a linear module, its transpose (the Conv1D of GPT-2), the kernels of a
    convolution one row an output channel, [out, in / groups * points], or one slice of a parameter that holds
    a mixture's experts side by side.

    Attributes:
        name: the name of the first module that uses the weight; of an expert, the name of the
            parameter and the expert's number.
        modules: the modules; more than one where the weight is shared.
        key: what the modules call the parameter.
        transposed: whether the parameter has its inputs before its outputs.
        slot: the number of the expert; None where the parameter is one matrix.
    """

    name: str
    modules: tuple[nn.Module, ...]
    key: str = "weight"
    transposed: bool = False
    slot: int | None = None

    @property
    def parameter(self) -> Tensor:
        """The parameter itself, as the model stores it."""
        return getattr(self.modules[0], self.key)

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The matrix, one row an output, to be read: a view of the parameter where memory is laid out so."""
        return self.view(self.parameter)

    @torch.no_grad()
    def write(self, matrix: Float[Tensor, "out in"]) -> None:
        """Change the model.

        Args:
            matrix: the new weights, one row an output.
        """
        target = self.parameter if self.slot is None else self.parameter[self.slot]
        target.copy_(self.stored(matrix))

    def view(self, stored: Tensor) -> Shaped[Tensor, "out in"]:
        """Give the layer's part of anything that is shaped like the parameter.

        Args:
            stored: the parameter, its gradient, a mask of it.

        Returns:
            One row an output; a view, but for kernels whose channels lie last in memory.
        """
        matrix = stored if self.slot is None else stored[self.slot]
        return matrix.mT if self.transposed else matrix.flatten(1)

    def stored(self, matrix: Float[Tensor, "out in"]) -> Tensor:
        """Give a matrix as the parameter, or the expert's slice of it, holds it: the inverse of `view`.

        Args:
            matrix: one row an output.

        Returns:
            A view.
        """
        return matrix.mT if self.transposed else matrix.reshape(len(matrix), -1, *self.kernel)

    @property
    def parameter_name(self) -> str:
        """The parameter's key in the model's `state_dict`."""
        if self.slot is not None:
            return self.name.rpartition(".")[0]
        return f"{self.name}.{self.key}" if self.name else self.key

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        sizes = self.parameter.shape if self.slot is None else self.parameter.shape[1:]
        outs, ins = (sizes[1], sizes[0]) if self.transposed else (sizes[0], math.prod(sizes[1:]))
        return (outs, ins)

    @property
    def kernel(self) -> tuple[int, ...]:
        """Height and width of a convolution, or as many extents as it has; nothing of other layers."""
        return tuple(self.parameter.shape[2:]) if self.slot is None else ()

    @property
    def gram_bytes(self) -> int:
        """What the products of its inputs take, in float32 or wider: those of each group of a convolution."""
        patches = Patches.of(self.modules[0])
        groups = 1 if patches is None else patches.groups
        wide = torch.promote_types(self.parameter.dtype, torch.float32)
        return groups * self.shape[1] ** 2 * wide.itemsize

    @property
    def size(self) -> int:
        """How many weights there are."""
        return self.shape[0] * self.shape[1]


def find_layers(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> tuple[Layer, ...]:
    """Find the layers whose names match, in the order the model lists them.

    They are modules of the types torch.nn.Linear, Conv1d, Conv2d, Conv3d and transformers' Conv1D, and the
    experts of transformers' mixtures, one layer for each expert and matrix. A weight shared by several
    modules is one layer. Weights shared with a module of another kind (an embedding, say) are left alone,
    and so is what routes between experts.

    Args:
        model: the network.
        include: glob patterns for module names; a layer must match at least one.
        exclude: glob patterns for module names; a layer must match none.

    Returns:
        The layers.

    Raises:
        SecateurError: a pattern matches nothing, no layer is left, or the weight of one that is
            left is computed rather than stored.
    """
    layers = all_layers(model)
    names = [layer.name for layer in layers]
    if not names:
        raise SecateurError(
            "the model has no layers to prune: Secateur prunes the weights of torch.nn.Linear, Conv1d, "
            "Conv2d and Conv3d, of transformers' Conv1D and of its mixtures of experts."
        )
    for pattern in (*include, *exclude):
        if not fnmatch.filter(names, pattern):
            raise SecateurError(
                f"the layer pattern '{pattern}' matches no layer of the model: {nearest(pattern, names)}"
            )
    chosen = tuple(
        layer
        for layer in layers
        if any(fnmatch.fnmatchcase(layer.name, p) for p in include)
        and not any(fnmatch.fnmatchcase(layer.name, p) for p in exclude)
    )
    if not chosen:
        raise SecateurError(
            f"the patterns exclude every layer: include={list(include)}, exclude={list(exclude)}; "
            f"the model has {', '.join(names)}."
        )
    for layer in chosen:
        _check(layer)
    return chosen


def all_layers(model: nn.Module) -> list[Layer]:
    """List every layer of a model, those too that cannot be pruned as their weight is computed.

    Args:
        model: the network.

    Returns:
        The layers, in the order the model lists them; neither weights shared with what is none, nor
        what routes between experts.
    """
    # Not only the weights of embeddings: a decoder may hold its weight itself, and one that
    # torch.nn.utils.prune has renamed is a linear module's, but no longer its "weight".
    elsewhere = {
        id(parameter)
        for module in model.modules()
        for key, parameter in module._parameters.items()
        if parameter is not None and not (is_layer(module) and key == "weight")
    }
    routers = _routers(model)
    found: dict[object, Layer] = {}
    for name, module in model.named_modules():
        if is_mixture(module):
            candidates = [(_identity(layer), layer) for layer in _experts(name, module)]
        elif is_layer(module) and id(module) not in routers:
            layer = Layer(name, (module,), transposed=is_transposed(module))
            identity = _identity(layer)
            candidates = [] if identity[0] in elsewhere else [(identity, layer)]
        else:
            continue
        for identity, layer in candidates:
            known = found.get(identity)
            found[identity] = layer if known is None else replace(known, modules=(*known.modules, module))
    return list(found.values())


def _routers(model: nn.Module) -> set[int]:
    """Find the linear modules that choose between experts, or weigh one that is always used."""
    # They stand beside the mixture, by themselves or as the only linear part of what does, and have an
    # output for each expert, or one.
    found: set[int] = set()
    for parent in model.modules():
        for mixture in filter(is_mixture, parent.children()):
            for beside in parent.children():
                linear = [part for part in beside.modules() if is_linear(part)]
                if beside is not mixture and len(linear) == 1:
                    layer = Layer("", (linear[0],), transposed=is_transposed(linear[0]))
                    found |= {id(linear[0])} if layer.shape[0] in (1, mixture.num_experts) else set()
    return found


def _identity(layer: Layer) -> tuple[int, int | None, str]:
    """Tell a weight from others, shared ones being the same."""
    # A weight that is computed is a new tensor every time, so that only the module tells.
    module = layer.modules[0]
    stored = module._parameters.get(layer.key)
    return (id(module if stored is None else stored), layer.slot, layer.key)


def is_layer(module: nn.Module) -> bool:
    """Say whether a module's `weight` can be pruned.

    Args:
        module: the module.

    Returns:
        True for linear maps and convolutions.
    """
    return is_linear(module) or is_convolution(module)


def is_linear(module: nn.Module) -> bool:
    """Say whether a module is a linear map with its matrix as `weight`.

    Args:
        module: the module.

    Returns:
        True for torch.nn.Linear and transformers' Conv1D.
    """
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Say whether a module's matrix has its inputs before its outputs.

    Args:
        module: the module.

    Returns:
        True for transformers' Conv1D.
    """
    known = sys.modules.get("transformers.pytorch_utils")  # a model that has one has imported it
    return known is not None and isinstance(module, known.Conv1D)


def is_mixture(module: nn.Module) -> bool:
    """Say whether a module holds the matrices of several experts in parameters of three dimensions.

    Args:
        module: the module.

    Returns:
        True where it does, and says whether they are transposed, as those of transformers do.
    """
    return hasattr(module, "num_experts") and hasattr(module, "is_transposed")


def _experts(name: str, module: nn.Module) -> list[Layer]:
    """Give a layer for each matrix of each expert."""
    at = f"{name}." if name else ""
    computed = getattr(module, "parametrizations", {}) if parametrize.is_parametrized(module) else {}
    parameters = {key: getattr(module, key) for key in (*module._parameters, *computed)}
    return [
        Layer(f"{at}{key}.{slot}", (module,), key, bool(module.is_transposed), slot)
        for key, parameter in parameters.items()
        if parameter is not None and parameter.dim() == 3
        for slot in range(parameter.shape[0])
    ]


def unreached(layer: Layer, pattern: str | None = None) -> str:
    """Give the error message for a layer whose inputs are never seen.

    Args:
        layer: the layer.
        pattern: what to exclude instead of it alone.

    Returns:
        The message.
    """
    if isinstance(layer.modules[0], NonDynamicallyQuantizableLinear):
        return (
            f"the weight of layer '{layer.name}' is used by torch.nn.MultiheadAttention directly, so that "
            'its inputs cannot be recorded: exclude such layers, for example exclude = ["*out_proj"], or '
            "take a method that needs gradients alone (icbs without blocks, one-shot by gradient)."
        )
    return f"layer '{layer.name}' is never reached by the data: {to_exclude(pattern or layer.name)}"


def to_exclude(name: str) -> str:
    """Give the tail of an error message about a layer that cannot be pruned.

    Args:
        name: the layer.

    Returns:
        How it is left alone.
    """
    return f'exclude it, for example exclude = ["{name}"].'


def _check(layer: Layer) -> None:
    """Refuse a layer whose weight is computed: what is written to it would be lost."""
    module = layer.modules[0]
    if parametrize.is_parametrized(module, layer.key):
        raise SecateurError(
            f"layer '{layer.name}' is parametrized, so its weight is computed rather than stored: remove "
            "the parametrization first (torch.nn.utils.parametrize.remove_parametrizations), or exclude "
            "the layer."
        )
    stored = module._parameters.get(layer.key)
    if stored is not None and is_lazy(stored):
        raise SecateurError(
            f"layer '{layer.name}' is lazy and has no weight yet: run the model on a sample, and load "
            "trained weights, before it is pruned."
        )
    if stored is None:
        raise SecateurError(
            f"the weight of layer '{layer.name}' is computed before each pass rather than stored, as by "
            "torch.nn.utils.prune or weight_norm: remove that first (torch.nn.utils.prune.remove, "
            "remove_weight_norm or remove_spectral_norm), or exclude the layer."
        )
