"""Best-swap descent of many assignments in lockstep."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.solvers.batched.groups import Groups
from secateur.solvers.batched.parts import pieces_of
from secateur.solvers.batched.stack import Stack

# Kept variables that are compared with all pruned ones of their group in every round.
_CANDIDATES = 8
# Where a group has so many times fewer pruned variables than there are variables, entries of B are
# taken for the pruned ones alone. By factors single entries cost more than those of whole rows.
_FEW, _FEW_BY_FACTORS = 4, 16
# Descents end by themselves; this many rounds a variable bound the time if rounding misleads one.
_ROUNDS_PER_VARIABLE = 100
# Fields are computed afresh after so many rounds, which keeps rounding errors small.
_REFRESH = 1024


@dataclass(frozen=True, eq=False)
class Ends:
    """Where descents ended.

    Attributes:
        assignments: the r ends of each problem.
        values: the objective there, of the problems as the stack holds them.
        local: whether no swap improves the end.
        work: swaps evaluated, in each problem.
    """

    assignments: Bool[Tensor, "b r n"]
    values: Float[Tensor, "b r"]
    local: Bool[Tensor, "b r"]
    work: Int[Tensor, " b"]

    def beside(self, others: "Ends", work: Int[Tensor, " b"]) -> "Ends":
        """Put other ends of the same problems beside these.

        Args:
            others: the others.
            work: what was done in between.

        Returns:
            All of them.
        """
        return Ends(
            torch.cat([self.assignments, others.assignments], 1),
            torch.cat([self.values, others.values], 1),
            torch.cat([self.local, others.local], 1),
            self.work + work + others.work,
        )


@dataclass(eq=False)
class _Front:
    """The descents that have not ended: where each is. All tensors have a row for each.

    Attributes:
        seat: the number of the descent.
        owner: its problem.
        groups: the groups of that problem.
        cost: half the diagonal of B and the slack.
        peak: the largest entry of each row of B beside the diagonal.
        x: the assignment.
        slots: the pruned variables of each group, and n in the slots left over; None where
            they are so many that whole rows of B are dealt with more easily.
        fields: f = l + B x.
        fresh: whether the fields were computed afresh since the last swap.
        work: swaps evaluated so far.
    """

    seat: Int[Tensor, " a"]
    owner: Int[Tensor, " a"]
    groups: Groups
    cost: Float[Tensor, "a n"]
    peak: Float[Tensor, "a n"]
    x: Bool[Tensor, "a n"]
    slots: Int[Tensor, "a g k"] | None
    fields: Float[Tensor, "a n"]
    fresh: Bool[Tensor, " a"]
    work: Int[Tensor, " a"]

    def keep(self, rows: Int[Tensor, " c"]) -> "_Front":
        """Keep some of the descents."""
        return _Front(
            self.seat[rows],
            self.owner[rows],
            self.groups.take(rows),
            self.cost[rows],
            self.peak[rows],
            self.x[rows],
            None if self.slots is None else self.slots[rows],
            self.fields[rows],
            self.fresh[rows],
            self.work[rows],
        )


@dataclass(eq=False)
class _Best:
    """The best swap of each descent so far: its change, below 0, or 0 where there is none yet."""

    change: Float[Tensor, " a"]
    prune: Int[Tensor, " a"]
    restore: Int[Tensor, " a"]


def descend(stack: Stack, starts: Bool[Tensor, "b r n"], exact: bool = True) -> Ends:
    """Make the best swap in each of many assignments, again and again, until none improves any.

    With fields f = l + B x, pruning i and restoring j changes the objective by p_i + q_j - B_ij,
    where p_i = f_i + 1/2 B_ii and q_j = 1/2 B_jj - f_j. A round makes one swap in every
    descent. As B_ij <= peak_i, an i with p_i - peak_i + min q no less than the best change
    known is in no better swap: the 8 i where this is least are compared with every j of their
    group, and then the few others that this leaves. So each swap is the best there is, as in
    the solver 'swaps', from whose ends these differ only where swaps tie. A swap counts as
    better only if it gains more than rounding could feign. Descents that have ended leave the
    batch.

    Memory: some 20 vectors of n float64 numbers a start, and three temporaries of at most
    256 MB each. About 120 kernel launches a round, and 3 waits for the device.

    Args:
        stack: the problems.
        starts: r feasible assignments of each.
        exact: whether a round looks beyond the 8 where they hold an improving swap. Without
            it the swaps are not always the best, but the ends are local optima all the same:
            for factor form, where entries of B are dear.

    Returns:
        The ends.
    """
    b, r, n = starts.shape
    ends = starts.flatten(0, 1).clone()
    local, values = ends.new_zeros(b * r), stack.linear.new_zeros(b * r)
    work = torch.zeros_like(values, dtype=torch.long)

    def record(front: _Front, rows: Int[Tensor, " c"], is_local: bool) -> None:
        """Note where descents ended."""
        seat, owner, x = front.seat[rows], front.owner[rows], front.x[rows]
        ends[seat], local[seat], work[seat] = x, is_local, front.work[rows]
        values[seat] = stack.constant[owner] + 0.5 * (x * (stack.linear[owner] + front.fields[rows])).sum(1)

    front = _begin(stack, ends, r)
    for turn in range(1, _ROUNDS_PER_VARIABLE * n + 1):
        moving = _swap(stack, front, _best_swaps(stack, front, exact))
        stuck = (~moving).nonzero()[:, 0]
        if stuck.numel():
            sure = front.fresh[stuck]
            record(front, stuck[sure], is_local=True)
            _refresh(stack, front, stuck[~sure])
            left = torch.ones_like(moving).index_fill_(0, stuck[sure], False)
            front = front.keep(left.nonzero()[:, 0])
            if not front.seat.numel():
                break
        if turn % _REFRESH == 0:
            _refresh(stack, front, torch.arange(front.seat.numel(), device=starts.device))
    record(front, torch.arange(front.seat.numel(), device=starts.device), is_local=False)
    return Ends(ends.view(b, r, n), values.view(b, r), local.view(b, r), work.view(b, r).sum(1))


def _begin(stack: Stack, starts: Bool[Tensor, "a n"], repeats: int) -> _Front:
    """Set out from every start."""
    seat = torch.arange(starts.shape[0], device=starts.device)
    owner = seat // repeats
    groups, most = stack.groups.take(owner), max(1, int(stack.groups.counts.max()))
    whole = most * (_FEW if stack.formed else _FEW_BY_FACTORS) > starts.shape[1]
    return _Front(
        seat=seat,
        owner=owner,
        groups=groups,
        cost=(0.5 * stack.diagonal + stack.slack)[owner],
        peak=stack.peak[owner],
        x=starts.clone(),
        slots=None if whole else groups.chosen(starts, most),
        fields=stack.linear[owner] + stack.products(owner, starts.double()),
        fresh=torch.ones_like(seat, dtype=torch.bool),
        work=torch.zeros_like(seat),
    )


def _refresh(stack: Stack, front: _Front, rows: Int[Tensor, " c"]) -> None:
    """Compute the fields of some descents afresh."""
    if rows.numel():
        owner = front.owner[rows]
        front.fields[rows] = stack.linear[owner] + stack.products(owner, front.x[rows].double())
        front.fresh[rows] = True


def _swap(stack: Stack, front: _Front, best: _Best) -> Bool[Tensor, " a"]:
    """Make the swaps; say which descents had one to make."""
    moving = best.change < 0
    rise, fall = stack.rows(front.owner, best.prune), stack.rows(front.owner, best.restore)
    front.fields.add_((rise - fall) * moving[:, None])
    pair = torch.stack([best.prune, best.restore], 1)
    front.x.scatter_(1, pair, front.x.gather(1, pair) ^ moving[:, None])
    if front.slots is not None:
        every = torch.arange(moving.numel(), device=moving.device)
        group = front.groups.labels[every, best.prune]
        slots = front.slots[every, group]
        left = (slots == best.restore[:, None]) & moving[:, None]
        front.slots[every, group] = torch.where(left, best.prune[:, None], slots)
    front.fresh &= ~moving
    return moving


def _best_swaps(stack: Stack, front: _Front, exact: bool) -> _Best:
    """Find the best swap of each descent."""
    a, n = front.x.shape
    move = front.cost + torch.where(front.x, -front.fields, front.fields)
    prices = torch.where(front.x, move, torch.inf)
    cheapest = front.groups.spread(front.groups.low(prices))
    costs = torch.where(front.x, torch.inf, move)
    reach = costs - front.peak + cheapest
    nothing = torch.zeros_like(front.seat)
    best = _Best(torch.zeros_like(reach[:, 0]), nothing, nothing)
    first = reach.topk(min(_CANDIDATES, n), dim=1, largest=False).indices
    rows = torch.arange(a, device=first.device)[:, None].expand_as(first)
    best = _challenge(stack, front, costs, prices, best, rows.flatten(), first.flatten())
    bar = best.change if exact else torch.where(best.change < 0, -torch.inf, 0.0)
    others = (reach < bar[:, None]).scatter_(1, first, False).nonzero()
    return _challenge(stack, front, costs, prices, best, others[:, 0], others[:, 1])


def _challenge(
    stack: Stack,
    front: _Front,
    costs: Float[Tensor, "a n"],
    prices: Float[Tensor, "a n"],
    best: _Best,
    rows: Int[Tensor, " c"],
    variables: Int[Tensor, " c"],
) -> _Best:
    """Compare the best swaps with all that prune some variables, in descents `rows`."""
    few = 0 if front.slots is None else front.slots.shape[2]
    size = few * (1 if stack.formed else stack.quadratic.shape[2]) or costs.shape[1]
    for part in pieces_of(rows.numel(), size):
        row, prune = rows[part], variables[part]
        change, restore = _cheapest_partners(stack, front, prices, row, prune)
        change = change + costs[row, prune]
        low = best.change.scatter_reduce(0, row, change, "amin")
        # Of those that tie, the first in order: a minimum of places comes out alike on any device.
        none = row.numel()
        place = torch.arange(none, device=row.device)
        place = torch.where((change == low[row]) & (change < best.change[row]), place, none)
        winner = torch.full_like(best.prune, none).scatter_reduce(0, row, place, "amin")
        better, winner = winner < none, winner.clamp(max=none - 1)
        best = _Best(
            low,
            torch.where(better, prune[winner], best.prune),
            torch.where(better, restore[winner], best.restore),
        )
        front.work.index_add_(0, row, front.groups.counts[row, front.groups.labels[row, prune]])
    return best


def _cheapest_partners(
    stack: Stack,
    front: _Front,
    prices: Float[Tensor, "a n"],
    rows: Int[Tensor, " c"],
    prune: Int[Tensor, " c"],
) -> tuple[Float[Tensor, " c"], Int[Tensor, " c"]]:
    """Find the j with the least q_j - B_ij among the pruned ones in the group of i."""
    owner, labels = front.owner[rows], front.groups.labels
    if front.slots is not None:
        slots = front.slots[rows, labels[rows, prune]]
        price = torch.nn.functional.pad(prices, (0, 1), value=torch.inf)[rows[:, None], slots]
        least, at = (price - stack.entries(owner, prune, slots)).min(1)
        return least, slots.gather(1, at[:, None])[:, 0].clamp(max=prices.shape[1] - 1)
    changes = prices.index_select(0, rows) - stack.rows(owner, prune)
    if front.groups.counts.shape[1] > 1:
        changes.masked_fill_(labels[rows] != labels[rows, prune][:, None], torch.inf)
    least, restore = changes.min(1)
    return least, restore
