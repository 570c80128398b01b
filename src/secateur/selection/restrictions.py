"""Wrappers that keep some weights out of any selector's blocks."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.ranks import mark_best
from secateur.core.registry import register
from secateur.core.selector import LayerView, Selector
from secateur.core.signal import Signal


@dataclass(frozen=True)
class Restriction(Selector):
    """A selector whose gains are another's, except for weights that it forbids.

    Attributes:
        selector: what is wrapped.
    """

    selector: Selector

    @property
    def needs(self) -> frozenset[Signal]:
        """What the wrapped selector needs."""
        return self.selector.needs

    @property
    def remembers(self) -> bool:
        """Whether the wrapped selector does."""
        return self.selector.remembers

    def freeze(self, mask: Bool[Tensor, "o i"], scores: Float[Tensor, "o i"]) -> Bool[Tensor, "o i"]:
        """Freeze what the wrapped selector freezes."""
        return self.selector.freeze(mask, scores)


@register("selector", "fixed")
@dataclass(frozen=True)
class Fixed(Restriction):
    """The surest weights of the one-shot mask never change.

    In each layer the lowest-scored fraction of the pruned weights stays pruned, the
    highest-scored fraction of the kept ones stays kept (Rosenberg et al. 2024,
    arXiv:2411.17796).

    Attributes:
        selector: what is wrapped.
        pruned: fraction of the pruned weights, in [0, 1].
        kept: fraction of the kept weights, in [0, 1].

    Raises:
        SecateurError: a fraction outside [0, 1].
    """

    pruned: float = 0.42
    kept: float = 0.35

    def __post_init__(self) -> None:
        """Check the fractions."""
        for name, value in (("pruned", self.pruned), ("kept", self.kept)):
            if not 0 <= value <= 1:
                raise SecateurError(f"the fixed fraction '{name}' must lie in [0, 1], not {value}.")

    def freeze(self, mask: Bool[Tensor, "o i"], scores: Float[Tensor, "o i"]) -> Bool[Tensor, "o i"]:
        """Freeze the surest weights, and what the wrapped selector freezes."""
        surest_pruned = _lowest(torch.where(mask, torch.inf, scores), int(self.pruned * int((~mask).sum())))
        surest_kept = _lowest(torch.where(mask, -scores, torch.inf), int(self.kept * int(mask.sum())))
        return self.selector.freeze(mask, scores) | surest_pruned | surest_kept

    def gain(self, view: LayerView) -> Float[Tensor, "o i"]:
        """Forbid the frozen weights."""
        return self.selector.gain(view).masked_fill(view.frozen, -torch.inf)


def _lowest(keys: Float[Tensor, "o i"], count: int) -> Bool[Tensor, "o i"]:
    """Mark the `count` lowest keys, ties by position."""
    return mark_best(-keys.reshape(1, -1), count).reshape(keys.shape)


@register("selector", "tabu")
@dataclass(frozen=True)
class Tabu(Restriction):
    """Weights that were in recent blocks wait.

    The tabu list of a layer holds at most a fraction of its weights that are not frozen; the
    oldest leave first (Rosenberg et al. 2024, arXiv:2411.17796).

    Attributes:
        selector: what is wrapped.
        fraction: of the layer's free weights, in [0, 1].

    Raises:
        SecateurError: a fraction outside [0, 1].
    """

    fraction: float = 0.4

    def __post_init__(self) -> None:
        """Check the fraction."""
        if not 0 <= self.fraction <= 1:
            raise SecateurError(f"the tabu fraction must lie in [0, 1], not {self.fraction}.")

    @property
    def remembers(self) -> bool:
        """True, unless its list is always empty and the wrapped selector does not."""
        return self.fraction > 0 or self.selector.remembers

    def gain(self, view: LayerView) -> Float[Tensor, "o i"]:
        """Forbid the weights on the tabu list."""
        capacity = int(self.fraction * int((~view.frozen).sum()))
        return self.selector.gain(view).masked_fill(most_recent(view.stamps, capacity), -torch.inf)


def most_recent(stamps: Tensor, capacity: int) -> Tensor:
    """Find the weights with the latest stamps.

    Args:
        stamps: the number of the last block that each weight was in; 0 = none yet.
        capacity: how many at most; of one block, those at lower positions come first.

    Returns:
        True for those weights.
    """
    return (stamps > 0) & mark_best(stamps.reshape(1, -1), capacity).reshape(stamps.shape)
