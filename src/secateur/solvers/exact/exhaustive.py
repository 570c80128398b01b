"""Enumeration: the oracle that the other solvers are checked against."""

import math
from dataclasses import dataclass

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.solution import Status
from secateur.core.solver import Found, Solver
from secateur.solvers.arrays import assignment, prepare
from secateur.solvers.kernels.enumeration import enumerate_all

# A running value may differ by this much, relative to the problem's size, from one computed afresh.
_DRIFT = 1e-12


@register("solver", "exhaustive")
@dataclass(frozen=True)
class Exhaustive(Solver):
    """Visits every feasible assignment, and so proves its answer optimal.

    There are prod_g C(n_g, k_g). They are visited in revolving-door order (Nijenhuis and
    Wilf 1978, Combinatorial Algorithms, chapter 3), the groups turning like an odometer, so
    that each costs one swap: O(n). A tie goes to the incumbent. Work counts assignments.

    Attributes:
        limit: assignments it is willing to visit, at least 1; 5e7 of 24 variables take seconds.
    """

    limit: int = 50_000_000

    def __post_init__(self) -> None:
        """Check the setting.

        Raises:
            SecateurError: the limit is below 1.
        """
        if not self.limit >= 1:
            raise SecateurError(f"the solver 'exhaustive' needs a limit of at least 1, not {self.limit}.")

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Visit every feasible assignment.

        Args:
            problem: a small problem.
            seed: not used.

        Returns:
            An optimal assignment, its value as the bound.

        Raises:
            SecateurError: there are more than `limit`.
        """
        sizes = problem.groups.bincount(minlength=problem.counts.numel()).tolist()
        total = math.prod(math.comb(n, k) for n, k in zip(sizes, problem.counts.tolist(), strict=True))
        if total > self.limit:
            many = f"{float(total):.3g}" if total < 1e300 else "over 1e300"
            raise SecateurError(
                f"the block problem has {many} feasible assignments, more than the limit {self.limit} "
                "of the solver 'exhaustive': choose smaller blocks or another solver."
            )
        instance, order = prepare(problem, dense=not problem.is_large)
        visited = enumerate_all(instance, order, _DRIFT * problem.magnitude)
        best = assignment(problem, instance, order)
        return Found(best, Status.OPTIMAL, visited, bound=problem.value(best))
