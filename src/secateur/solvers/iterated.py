"""Iterated search: from the best so far, shaken, again and again."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.seeds import derive_seed, generator
from secateur.core.solution import Solution, Status
from secateur.core.solver import Found, Solver
from secateur.solvers.tabu import TabuSearch


@register("solver", "iterated")
@dataclass(frozen=True)
class Iterated(Solver):
    """Searches from several starts, and then from the best answer with a part of it shaken.

    (Iterated local search: Lourenco, Martin and Stuetzle 2003; with tabu search inside, Palubeckis
    2006.) The starts are the incumbent and the answers of `starts`. To shake, so many random
    swaps are made in the groups that have both kinds. A proof of optimality ends it. Work is summed.

    Attributes:
        solver: the search: any solver that starts from its incumbent.
        starts: solvers that give further starts.
        rounds: shaken starts, at least 0.
        strength: random swaps to shake with, as a share of n, above 0 and at most 1.
    """

    solver: Solver = field(default_factory=lambda: TabuSearch(300))
    starts: tuple[Solver, ...] = ()
    rounds: int = 10
    strength: float = 0.02

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: something is no solver, or a number is out of its range.
        """
        object.__setattr__(self, "starts", tuple(self.starts))
        if not all(isinstance(solver, Solver) for solver in (self.solver, *self.starts)):
            raise SecateurError("the solver 'iterated' needs a solver to search with, and solvers as starts.")
        if not self.rounds >= 0 or not 0 < self.strength <= 1:
            raise SecateurError(
                "the solver 'iterated' needs at least 0 rounds and a strength above 0 and at most 1, "
                f"not {self.rounds} and {self.strength}."
            )

    def warm_up(self, size: int = 2) -> float:
        """Compile what it is made of, and call no part that may cost money or wait for a clock."""
        return sum(solver.warm_up(size) for solver in (self.solver, *self.starts))

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Search, shake, search.

        Args:
            problem: the problem.
            seed: of the first search; those of later ones derive from it.

        Returns:
            The best assignment seen.
        """
        draws = generator(seed, "iterated", 0)
        begun = [solver.search(problem, seed) for solver in self.starts]
        firsts = [problem.incumbent, *(found.assignment for found in begun)]
        best: Solution | None = None
        work = sum(found.work for found in begun)
        bound = max((found.bound for found in begun if found.bound is not None), default=None)
        for turn in range(len(firsts) + self.rounds):
            if turn < len(firsts):
                start = firsts[turn]
            else:
                assert best is not None
                start = shaken(problem, best.assignment, self.strength, draws)
            at = derive_seed(seed, "iterated", turn) if turn else seed
            found = self.solver.solve(problem.restarted(start), at, certify=False)
            work += found.work
            if best is None or found.value < best.value or found.status is Status.OPTIMAL:
                best = found
            if best.status is Status.OPTIMAL:
                break
        assert best is not None
        status = Status.FEASIBLE if best.status is Status.INCUMBENT else best.status
        return Found(best.assignment, status, work, bound)


def shaken(
    problem: BlockProblem, assignment: Bool[Tensor, " n"], strength: float, draws: torch.Generator
) -> Bool[Tensor, " n"]:
    """Make random swaps.

    Args:
        problem: the problem, for the groups.
        assignment: a feasible x.
        strength: swaps as a share of n; at least one is made.
        draws: where randomness comes from.

    Returns:
        Another feasible x.
    """
    device = assignment.device
    rank = torch.rand(problem.size, generator=draws, dtype=torch.float64).to(device)
    sides = [_ranked(problem.groups, side, rank) for side in (assignment, ~assignment)]
    total = problem.counts.numel()
    sizes = [problem.groups[side].bincount(minlength=total) for side in sides]
    pairs = torch.minimum(sizes[0], sizes[1])
    wanted = max(1, round(strength * problem.size))
    # So many of the possible pairs, spread over the groups by chance.
    group = torch.repeat_interleave(torch.arange(total, device=device), pairs)
    place = torch.arange(group.numel(), device=device) - (pairs.cumsum(0) - pairs)[group]
    drawn = torch.randperm(group.numel(), generator=draws)[:wanted].to(device)
    result = assignment.clone()
    for side, size in zip(sides, sizes, strict=True):
        at = side[(size.cumsum(0) - size)[group[drawn]] + place[drawn]]
        result[at] = ~result[at]
    return result


def _ranked(groups: Int[Tensor, " n"], side: Bool[Tensor, " n"], rank: Tensor) -> Int[Tensor, " m"]:
    """List the variables of a side group by group, in a random order within each."""
    members = side.nonzero().squeeze(1)
    members = members[rank[members].argsort()]
    return members[groups[members].argsort(stable=True)]
