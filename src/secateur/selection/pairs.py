"""From gains to a block: the pairs (restore one, prune one) of a group that promise most."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.core.block import Block
from secateur.core.budget import Budget
from secateur.core.mask import Mask


@dataclass(frozen=True, eq=False)
class Pick:
    """A block, and what it promises.

    Attributes:
        block: the weights.
        promise: the sum over its pairs of the two gains, as far as positive.
    """

    block: Block
    promise: float


def pick_pairs(
    gains: Mapping[str, Float[Tensor, "o i"]], mask: Mask, budget: Budget, size: int, pruned: int
) -> Pick:
    """Take the pruned and the kept weights that promise most, group by group.

    In each group the pruned and the kept candidates are ranked by gain; the p-th of either
    side is worth its own gain plus that of the p-th of the other (the last, where the other
    has fewer). Those worth most are taken. With one group this is the published rule: the
    `pruned` highest of one side, the `size - pruned` highest of the other; with several it
    keeps to groups in which both sides promise something, as a lone weight cannot move.

    Args:
        gains: for each layer to take from; -inf = must not be exchanged.
        mask: what is kept now.
        budget: the groups.
        size: n, how many weights to take at most.
        pruned: k, how many of them are pruned ones, in [0, n].

    Returns:
        The block, positions ascending in each layer; smaller than n where candidates run out.
    """
    restore = _candidates(gains, mask, budget, keep=False, most=pruned)
    prune = _candidates(gains, mask, budget, keep=True, most=size - pruned)
    a, b = _ranked(*restore[:2]), _ranked(*prune[:2])
    worth_a, worth_b = _worth(a, b), _worth(b, a)
    chosen_a = a.order[_top(worth_a, pruned)]
    chosen_b = b.order[_top(worth_b, size - pruned)]
    pairs = worth_a.sort(descending=True)[0][: min(pruned, size - pruned)]
    indices: dict[str, Tensor] = {}
    for at, name in enumerate(gains):
        found = [
            side[2][chosen][side[3][chosen] == at]
            for side, chosen in ((restore, chosen_a), (prune, chosen_b))
        ]
        joined = torch.cat(found).sort()[0]
        if joined.numel():
            indices[name] = joined
    return Pick(Block(indices), float(pairs[torch.isfinite(pairs)].clamp(min=0).sum()))


@dataclass(frozen=True, eq=False)
class _Side:
    """One side's candidates, best first within each group, groups ascending."""

    order: Int[Tensor, " m"]
    gains: Float[Tensor, " m"]
    groups: Int[Tensor, " m"]
    ranks: Int[Tensor, " m"]


def _candidates(
    gains: Mapping[str, Tensor], mask: Mask, budget: Budget, keep: bool, most: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Collect one side's candidates: gains, groups, flat positions, number of the layer."""
    parts = []
    for at, (name, gain) in enumerate(gains.items()):
        flat = torch.where(mask[name] == keep, gain, -torch.inf).reshape(-1)
        # Where a layer lies within one group, only its best can be taken.
        if budget.grouping in ("layer", "global"):
            index = flat.topk(min(most, flat.numel()))[1]
            index = index[torch.isfinite(flat[index])].sort()[0]
        else:
            index = torch.isfinite(flat).nonzero().squeeze(1)
        parts.append((flat[index], budget.groups(name, index), index, torch.full_like(index, at)))
    columns = list(zip(*parts, strict=True))
    return (torch.cat(columns[0]), torch.cat(columns[1]), torch.cat(columns[2]), torch.cat(columns[3]))


def _ranked(gains: Tensor, groups: Tensor) -> _Side:
    """Sort candidates by group and, within it, by falling gain."""
    order = gains.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    groups = groups[order]
    starts = torch.searchsorted(groups, groups)
    ranks = torch.arange(groups.numel(), device=groups.device) - starts
    return _Side(order, gains[order], groups, ranks)


def _worth(side: _Side, other: _Side) -> Float[Tensor, " m"]:
    """Give each candidate its own gain plus that of its counterpart, -inf where it has none."""
    if other.groups.numel() == 0:
        return torch.full_like(side.gains, -torch.inf)
    start = torch.searchsorted(other.groups, side.groups)
    count = torch.searchsorted(other.groups, side.groups, right=True) - start
    partner = (start + torch.minimum(side.ranks, count - 1)).clamp(0, other.groups.numel() - 1)
    return torch.where(count > 0, side.gains + other.gains[partner], -torch.inf)


def _top(worth: Float[Tensor, " m"], most: int) -> Int[Tensor, " k"]:
    """Give the positions of the highest finite values, ties by position."""
    order = worth.argsort(descending=True, stable=True)[:most]
    return order[_finite(worth[order])]


def _finite(values: Tensor) -> Bool[Tensor, " m"]:
    return values > -torch.inf
