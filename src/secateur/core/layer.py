"""A prunable weight of a network, seen as a matrix [out, in]."""

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils import parametrize

from secateur.core.errors import SecateurError, nearest


@dataclass(frozen=True, eq=False)
class Layer:
    """A prunable weight matrix, and every module that uses it.

    Attributes:
        name: the name of the first module that uses the weight.
        modules: the modules; more than one where the weight is shared.
    """

    name: str
    modules: tuple[nn.Linear, ...]

    @property
    def weight(self) -> Float[Tensor, "out in"]:
        """The parameter itself, one row an output."""
        return self.modules[0].weight

    @property
    def parameter_name(self) -> str:
        """The weight's key in the model's `state_dict`."""
        return f"{self.name}.weight" if self.name else "weight"

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and inputs."""
        return (self.modules[0].out_features, self.modules[0].in_features)

    @property
    def size(self) -> int:
        """How many weights there are."""
        return self.shape[0] * self.shape[1]


def find_layers(
    model: nn.Module, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> tuple[Layer, ...]:
    """Find the linear layers whose names match, in the order the model lists them.

    A weight shared by several modules is one layer. Weights shared with a module that is
    not linear (an embedding, say) are left alone.

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
    # Not only the weights of embeddings: a decoder may hold its weight itself, and one that
    # torch.nn.utils.prune has renamed is a linear module's, but no longer its "weight".
    elsewhere = {
        id(parameter)
        for module in model.modules()
        for key, parameter in module._parameters.items()
        if parameter is not None and not (isinstance(module, nn.Linear) and key == "weight")
    }
    found: dict[int, list[tuple[str, nn.Linear]]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            # A weight that is computed is a new tensor every time, so that only the module tells.
            stored = module._parameters.get("weight")
            identity = id(module if stored is None else stored)
            if identity not in elsewhere:
                found.setdefault(identity, []).append((name, module))
    layers = [Layer(uses[0][0], tuple(m for _, m in uses)) for uses in found.values()]
    names = [layer.name for layer in layers]
    if not names:
        raise SecateurError(
            "the model has no linear layers to prune: Secateur prunes the weights of torch.nn.Linear."
        )
    for pattern in (*include, *exclude):
        if not fnmatch.filter(names, pattern):
            raise SecateurError(
                f"the layer pattern '{pattern}' matches no linear layer of the model: "
                f"{nearest(pattern, names)}"
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
    if parametrize.is_parametrized(module, "weight"):
        raise SecateurError(
            f"layer '{layer.name}' is parametrized, so its weight is computed rather than stored: remove "
            "the parametrization first (torch.nn.utils.parametrize.remove_parametrizations), or exclude "
            "the layer."
        )
    if module._parameters.get("weight") is None:
        raise SecateurError(
            f"the weight of layer '{layer.name}' is computed before each pass rather than stored, as by "
            "torch.nn.utils.prune or weight_norm: remove that first (torch.nn.utils.prune.remove, "
            "remove_weight_norm or remove_spectral_norm), or exclude the layer."
        )
