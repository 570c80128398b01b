"""Apply a mask to a model: once, or so that zeros stay zero while the model is trained on.

The three ways to keep the zeros:

- ``"once"`` writes zeros into the weights. Nothing stays behind; training fills them again.
- ``"parametrization"`` computes each weight as the mask times a stored one
  (torch.nn.utils.parametrize). Exact under every optimiser. The state_dict then holds
  ``name.parametrizations.weight.original`` and ``name.parametrizations.weight.0.keep`` in place of
  ``name.weight``; `Applied.remove`, or torch's ``remove_parametrizations(module, "weight",
  leave_parametrized=True)``, puts the masked weight back as a plain parameter. (Experts' parameters
  have other names than ``weight``.)
- ``"hook"`` leaves the parameters and the state_dict's keys as they are: gradients of pruned weights
  are zeroed, and the weights themselves before each forward pass and each ``state_dict()``.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils.hooks import RemovableHandle

from secateur.core.errors import SecateurError, nearest
from secateur.core.layer import Layer, find_layers, is_mixture
from secateur.core.mask import Mask
from secateur.export.stored import StoredMask, by_parameter

Keep = Literal["once", "parametrization", "hook"]
_WAYS = ("once", "parametrization", "hook")


class Masked(nn.Module):
    """The parametrization weight -> weight where kept, 0 elsewhere.

    Pruned entries get no gradient. Not a product with the mask: that would leave -0, and NaN where
    the stored weight is infinite.
    """

    keep: Tensor

    def __init__(self, keep: Bool[Tensor, "*shape"]) -> None:
        """Hold the mask.

        Args:
            keep: True = kept; shaped as the parameter is stored.
        """
        super().__init__()
        self.register_buffer("keep", keep)

    def forward(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Mask the weight.

        Args:
            weight: what is stored.

        Returns:
            What the layer computes with.
        """
        return weight.masked_fill(~self.keep, 0)

    def right_inverse(self, weight: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """Say what to store so that a weight comes out: allows ``layer.weight = value``.

        Args:
            weight: the value assigned.

        Returns:
            The same.
        """
        return weight


@dataclass(frozen=True, eq=False)
class Applied:
    """A mask that has been applied.

    Attributes:
        mask: the mask.
        modules: the masked modules by layer; more than one where a weight is shared.
        keep: how its zeros are kept.
    """

    mask: Mask
    modules: dict[str, tuple[nn.Module, ...]]
    keep: Keep
    _stored: list[StoredMask] = field(default_factory=list)
    _handles: list[RemovableHandle] = field(default_factory=list)

    def check(self) -> float:
        """Verify that every pruned weight is 0 now.

        Returns:
            The density of the mask, which is thereby that of the model.

        Raises:
            SecateurError: a pruned weight is not 0.
        """
        for stored in self._stored:
            for name, alive in stored.alive():
                raise SecateurError(
                    f"{alive} pruned weights of layer '{name}' are not 0: apply the mask again, with "
                    'keep="parametrization" if the model is trained on.'
                )
        return self.mask.density

    def remove(self) -> None:
        """Make the weights plain parameters again, zeros in place; nothing keeps them 0 from here on."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        for stored in self._stored:
            for module in stored.modules:
                if parametrize.is_parametrized(module, stored.key):
                    parametrize.remove_parametrizations(module, stored.key, leave_parametrized=True)
        for stored in self._stored:
            stored.zero()


def apply_mask(model: nn.Module, mask: Mask | str | Path, *, keep: Keep = "once") -> Applied:
    """Apply a mask to a model, in place. Everything is checked before anything is changed.

    Args:
        model: the network that the mask was made for.
        mask: a mask, a mask.safetensors file, or the folder of a run.
        keep: ``"once"``, ``"parametrization"`` or ``"hook"``; see the head of this module.

    Returns:
        A handle: its `check` verifies the zeros, its `remove` takes off whatever keeps them.

    Raises:
        SecateurError: the mask belongs to another model, or the model is masked already.
    """
    if keep not in _WAYS:
        raise SecateurError(f"there is no way to keep zeros called '{keep}': {nearest(keep, _WAYS)}.")
    found = mask if isinstance(mask, Mask) else read_mask(mask)
    layers = match_layers(model, found)
    applied = Applied(found, {layer.name: layer.modules for layer in layers}, keep)
    for stored in by_parameter(layers, found):
        applied._stored.append(stored)
        stored.zero()
        if keep == "parametrization":
            # A shared weight stays shared: torch keeps the one parameter as every module's original.
            for module in stored.modules:
                parametrize.register_parametrization(module, stored.key, Masked(stored.keep))
        elif keep == "hook":
            applied._handles.extend(_hook(stored))
    applied.check()
    return applied


def read_mask(path: str | Path) -> Mask:
    """Read a mask from its file or from the folder of a run.

    Args:
        path: a mask.safetensors file, or a folder that holds one.

    Returns:
        The mask.

    Raises:
        SecateurError: there is no mask.
    """
    file = Path(path) / "mask.safetensors" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise SecateurError(
            f"there is no mask '{file}': give a mask.safetensors file or the folder of a run."
        )
    return Mask.load(file)


def match_layers(model: nn.Module, mask: Mask) -> list[Layer]:
    """Find the layers that a mask is for.

    Args:
        model: the network.
        mask: the mask.

    Returns:
        The layers, in the mask's order.

    Raises:
        SecateurError: a layer is missing or of another shape, or its weight is not a plain parameter.
    """
    for name, module in model.named_modules():
        if parametrize.is_parametrized(module, None if is_mixture(module) else "weight"):
            raise SecateurError(
                f"the weight of '{name}' is parametrized already: remove that first, with the handle's "
                "remove() or torch.nn.utils.parametrize.remove_parametrizations."
            )
    layers = {layer.name: layer for layer in find_layers(model)}
    missing = [name for name in mask if name not in layers]
    if missing:
        raise SecateurError(
            f"the mask belongs to another model: it has a layer '{missing[0]}' ({len(missing)} of its "
            f"{len(mask)} layers are missing), but the model's are {_few(layers)}."
        )
    for name in mask:
        if tuple(mask[name].shape) != layers[name].shape:
            raise SecateurError(
                f"the mask belongs to another model: its layer '{name}' is {list(mask[name].shape)}, the "
                f"model's {list(layers[name].shape)}."
            )
    return [layers[name] for name in mask]


def _hook(stored: StoredMask) -> list[RemovableHandle]:
    """Hook the modules of a parameter so that its pruned weights stay 0."""
    handles: list[RemovableHandle] = []
    for module in stored.modules:
        handles.append(module.register_forward_pre_hook(partial(_rezero, stored)))
        handles.append(module.register_state_dict_pre_hook(partial(_rezero, stored)))
    parameter = getattr(stored.modules[0], stored.key)
    if parameter.requires_grad:
        # With gradient and momentum at 0 an optimiser leaves a 0 alone, so that the weight is
        # right between a step and the next forward pass too.
        keep = stored.keep
        handles.append(parameter.register_hook(lambda grad: grad.masked_fill(~keep.to(grad.device), 0)))
    return handles


def _rezero(stored: StoredMask, module: nn.Module, *_: Any) -> None:
    """Zero the pruned weights of a module before it is used or saved."""
    parameter = getattr(module, stored.key)
    # Through .data, since a weight used twice in a pass must not count as modified in between.
    parameter.data.masked_fill_(~stored.keep.to(parameter.device), 0)


def _few(words: Iterable[str], most: int = 5) -> str:
    """Join the first few words."""
    known = list(words)
    return ", ".join(known[:most]) + (f" and {len(known) - most} more" if len(known) > most else "")
