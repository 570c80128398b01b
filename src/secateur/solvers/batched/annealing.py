"""Simulated annealing of many assignments in lockstep."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.solvers.batched.draws import below, bits, chance
from secateur.solvers.batched.stack import Stack

# Proposals that a chain weighs at once.
_LOOKAHEAD = 32
# Fields are computed afresh after so many steps, which keeps rounding errors small.
_REFRESH = 1024
# The host asks only so often whether all is done.
_PATIENCE = 32


def anneal(
    stack: Stack,
    starts: Bool[Tensor, "b r n"],
    keys: Int[Tensor, "b r"],
    betas: Float[Tensor, " t"],
    lookahead: int = _LOOKAHEAD,
) -> tuple[Bool[Tensor, "b r n"], Int[Tensor, " b"]]:
    """Anneal by random swaps (Kirkpatrick, Gelatt and Vecchi 1983), many chains in lockstep.

    A proposal prunes a kept variable and restores a pruned one of its group; a rise r is
    accepted with probability exp(-beta r). As one that is refused changes nothing, each chain
    weighs its next `lookahead` proposals at once and makes the first that is accepted: exactly
    what it would do one by one, at a cost for each accepted swap rather than for each proposal
    once few are accepted. Proposal t of a chain is a function of its key and t alone, so that the
    walk depends on the device, on `lookahead` and on the other chains through rounding only.

    Memory: some 12 vectors of n numbers of 8 bytes a chain, and some 20 of `lookahead`. About
    110 kernel launches a step, which makes a swap or passes `lookahead` proposals.

    Args:
        stack: the problems.
        starts: r feasible assignments of each, where the chains begin.
        keys: a random number for each chain.
        betas: inverse temperatures, in the unit of the inverse root mean square of B_ij; at
            each a chain makes as many proposals as its problem has variables.
        lookahead: at least 1.

    Returns:
        The best assignment that each chain saw, its start included, and the proposals made
        in each problem.
    """
    chains = _Chains(stack, starts.flatten(0, 1), keys.flatten(), betas)
    steps = 0
    while steps % _PATIENCE or bool((chains.clock < chains.end).any()):
        chains.step(lookahead)
        steps += 1
        if steps % _REFRESH == 0:
            chains.refresh()
    seen = torch.zeros_like(chains.pruned).scatter_(1, chains.best_order, chains.pruned)
    return seen.view(starts.shape), chains.end.view(keys.shape).sum(1)


class _Chains:
    """The chains, each at its own place in the same schedule.

    An assignment is an order of the variables: group by group, and within a group the pruned
    ones first. A place in the order (a slot) is for ever a pruned or a kept one, and a swap
    exchanges the variables in two slots.
    """

    def __init__(
        self, stack: Stack, x: Bool[Tensor, "a n"], keys: Int[Tensor, " a"], betas: Float[Tensor, " t"]
    ) -> None:
        """Begin."""
        (b, n), groups = stack.shape, stack.groups
        self.stack, self.keys = stack, keys[:, None]
        self.owner = torch.arange(x.shape[0], device=x.device) // (x.shape[0] // b)
        self.order = (2 * groups.labels[self.owner] + ~x).argsort(dim=1, stable=True)
        self.group = groups.labels.sort(dim=1).values
        self.first = groups.sizes.cumsum(1) - groups.sizes
        count = groups.counts.gather(1, self.group)
        pruned = torch.arange(n, device=x.device) - self.first.gather(1, self.group) < count
        free = ~pruned & (count > 0)
        self.kept_slots, self.kept = (~free).long().argsort(dim=1, stable=True), free.sum(1)
        self.pruned = pruned[self.owner]
        self.half = 0.5 * stack.diagonal[self.owner]
        self.betas = betas.to(x.device) / _unit(stack)[self.owner, None]
        self.clock = torch.zeros_like(keys)
        self.end = (stack.sizes * (self.kept > 0))[self.owner] * betas.numel()
        self.refresh()
        self.best, self.best_order = self.value, self.order

    def refresh(self) -> None:
        """Compute fields and values afresh."""
        x = torch.zeros_like(self.pruned).scatter_(1, self.order, self.pruned).double()
        linear = self.stack.linear[self.owner]
        self.fields = linear + self.stack.products(self.owner, x)
        self.value = 0.5 * (x * (linear + self.fields)).sum(1)

    def step(self, lookahead: int) -> None:
        """Make the first of the next proposals that is accepted, or pass them all."""
        times = self.clock[:, None] + torch.arange(lookahead, device=self.clock.device)
        slots = self._draw_slots(times)
        variables = self.order.gather(1, slots.flatten(1)).view(slots.shape)
        change = self._changes(variables[:, 0], variables[:, 1])
        sweep = times // self.stack.sizes.clamp(min=1)[self.owner, None]
        beta = self.betas.gather(1, sweep.clamp(max=self.betas.shape[1] - 1))
        luck = chance(bits(self.keys.expand_as(times), 2 * times + 1))
        accepted = (times < self.end[:, None]) & (luck < torch.exp(-beta * change))
        some, at = accepted.any(1), accepted.byte().argmax(1)
        self.clock = self.clock + torch.where(some, at + 1, lookahead)
        pick = at[:, None, None].expand(-1, 2, 1)
        slot, variable = slots.gather(2, pick)[:, :, 0], variables.gather(2, pick)[:, :, 0]
        rise = self.stack.rows(self.owner, variable[:, 0]) - self.stack.rows(self.owner, variable[:, 1])
        self.fields = self.fields + rise * some[:, None]
        self.order = self.order.scatter(1, slot, torch.where(some[:, None], variable.flip(1), variable))
        self.value = self.value + torch.where(some, change.gather(1, at[:, None])[:, 0], 0.0)
        better = self.value < self.best
        self.best = torch.where(better, self.value, self.best)
        self.best_order = torch.where(better[:, None], self.order, self.best_order)

    def _draw_slots(self, times: Int[Tensor, "a k"]) -> Int[Tensor, "a 2 k"]:
        """Draw a kept slot and a pruned one of the same group for each proposal."""
        random, owner = bits(self.keys.expand_as(times), 2 * times), self.owner[:, None]
        kept = self.kept_slots[owner, below(random, self.kept[owner], low=False)]
        group = self.group[owner, kept]
        counts = self.stack.groups.counts[owner, group]
        return torch.stack([kept, self.first[owner, group] + below(random, counts, low=True)], 1)

    def _changes(self, prune: Int[Tensor, "a k"], restore: Int[Tensor, "a k"]) -> Float[Tensor, "a k"]:
        """Evaluate swaps: p_i + q_j - B_ij."""
        rise, fall = self.half + self.fields, self.half - self.fields
        owner = self.owner[:, None].expand_as(prune).flatten()
        coupling = self.stack.entries(owner, prune.flatten(), restore.flatten()[:, None])
        return rise.gather(1, prune) + fall.gather(1, restore) - coupling.view(prune.shape)


def _unit(stack: Stack) -> Float[Tensor, " b"]:
    """Give the root mean square of B_ij; where B is zero the mean |l_i|, and 1 where l is too."""
    quadratic = stack.quadratic
    square = quadratic if stack.formed else torch.bmm(quadratic.mT, quadratic)
    unit = torch.linalg.matrix_norm(square).double() / stack.sizes.clamp(min=1)
    unit = torch.where(unit > 0, unit, stack.linear.abs().sum(1) / stack.sizes.clamp(min=1))
    return torch.where(unit > 0, unit, 1.0)
