"""From gains to a block: the pairs (restore one, prune one) of a group that promise most."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from secateur.core.block import Block
from secateur.core.budget import Budget
from secateur.core.mask import Mask
from secateur.core.ranks import as_rows, count_rows, from_rows, mark_best, places


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
    keeps to groups in which both sides promise something, as a lone weight cannot move. Ties
    go to lower groups, then ranks; those in gain to earlier layers, then lower positions.

    Only the first ranks of a group, as many as its `depth`, are looked at, the same number on
    both sides. That loses nothing:

    - a worth so found is the true one, since the counterpart of rank r < depth has rank
      min(r, count - 1), less than depth too, whether count is cut to depth or not;
    - worths fall, or stay, with the rank, and so a group of which more could be taken has its
      last rank looked at among those taken. Where that is so, its `depth` is raised to the
      larger of k and n - k: no deeper rank can be taken.

    Args:
        gains: for each layer to take from; -inf = must not be exchanged.
        mask: what is kept now.
        budget: the groups.
        size: n, how many weights to take at most.
        pruned: k, how many of them are pruned ones, in [0, n].

    Returns:
        The block, positions ascending in each layer; smaller than n where candidates run out.
    """
    if not 0 < pruned < size:
        return Pick(Block({}), 0.0)  # nothing to exchange with
    most = max(pruned, size - pruned)
    rows = {name: as_rows(gain, budget.grouping).shape[0] for name, gain in gains.items()}
    groups = max(budget.offset(name) + count for name, count in rows.items())
    spread = 1 if budget.grouping == "global" else sum(rows.values())
    # Enough where what promises most is spread over the groups.
    first = min(most, max(8, 4 * most // spread))
    depth = torch.full((groups,), first, device=next(iter(gains.values())).device)
    while True:
        a, b = (_side(gains, mask, budget, keep, depth) for keep in (False, True))
        worth_a, worth_b = _worth(a, b), _worth(b, a)
        chosen_a, chosen_b = _top(worth_a, pruned), _top(worth_b, size - pruned)
        taken = torch.cat([a.groups[chosen_a], b.groups[chosen_b]])
        last = torch.cat([a.ranks[chosen_a], b.ranks[chosen_b]]) == depth[taken] - 1
        short = taken[last & (depth[taken] < most)]
        if short.numel() == 0:
            break
        depth[short] = most
    indices: dict[str, Tensor] = {}
    for at, name in enumerate(gains):
        found = [
            side.index[chosen][side.layers[chosen] == at] for side, chosen in ((a, chosen_a), (b, chosen_b))
        ]
        joined = torch.cat(found).sort()[0]
        if joined.numel():
            indices[name] = joined
    pairs = worth_a.sort(descending=True)[0][: min(pruned, size - pruned)]
    return Pick(Block(indices), float(pairs[torch.isfinite(pairs)].clamp(min=0).sum()))


@dataclass(frozen=True, eq=False)
class _Side:
    """One side's candidates, best first within each group, groups ascending."""

    gains: Float[Tensor, " m"]
    groups: Int[Tensor, " m"]
    ranks: Int[Tensor, " m"]
    index: Int[Tensor, " m"]
    layers: Int[Tensor, " m"]


def _side(gains: Mapping[str, Tensor], mask: Mask, budget: Budget, keep: bool, depth: Tensor) -> _Side:
    """Rank one side's candidates within their groups, as far as each group's `depth`, ties by position."""
    parts = []
    for at, (name, gain) in enumerate(gains.items()):
        allowed = (mask[name] == keep) & (gain > -torch.inf) & (gain < torch.inf)  # NaN is neither
        rows = as_rows(torch.where(allowed, gain, -torch.inf), budget.grouping)
        # Counted, so that what is forbidden is not ranked among its like.
        start = budget.offset(name)
        best = mark_best(rows, torch.minimum(count_rows(rows > -torch.inf), depth[start : start + len(rows)]))
        index = from_rows(best, budget.grouping, gain.shape).reshape(-1).nonzero().squeeze(1)
        parts.append((gain.reshape(-1)[index], budget.groups(name, index), index, torch.full_like(index, at)))
    values, groups, index, layers = (torch.cat(column) for column in zip(*parts, strict=True))
    order = values.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]
    ranks = places(groups[order])
    near = ranks < depth[groups[order]]  # layers that share a group bring more
    order, ranks = order[near], ranks[near]
    return _Side(values[order], groups[order], ranks, index[order], layers[order])


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
    return order[worth[order] > -torch.inf]
