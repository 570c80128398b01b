"""Tabu search over swaps."""

from dataclasses import dataclass

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.solver import Found, Solver
from secateur.solvers.arrays import assignment, prepare, random_state
from secateur.solvers.decomposition import Decomposition
from secateur.solvers.kernels.tabu import tabu
from secateur.solvers.swaps import Swaps


@register("solver", "tabu")
@dataclass(frozen=True)
class TabuSearch(Solver):
    """Makes the best swap each time, for better or worse, of variables that have rested.

    (Glover 1989.) A variable that moved rests for `tenure` iterations and, by chance, up to
    as many again; a swap to better than ever is made whoever rests. The swaps compared are those
    of a shortlist: in each group the `width` kept variables that would cost least to prune and
    the `width` pruned ones that would cost least to restore, so that an iteration takes O(n). It
    starts from the incumbent, keeps the best assignment seen, and ends with swap descent from
    there. By factors and above 4,096 variables it goes a working set at a time
    (`Decomposition`). Work counts the swaps evaluated.

    Attributes:
        iterations: swaps to make, at least 1.
        tenure: iterations of rest, at least 1; no more than a quarter of n is used.
        width: variables of either kind on the shortlist, at least 1.
    """

    iterations: int = 1000
    tenure: int = 5
    width: int = 16

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: a setting is below 1.
        """
        if not (self.iterations >= 1 and self.tenure >= 1 and self.width >= 1):
            raise SecateurError(
                "the solver 'tabu' needs at least 1 iteration, a tenure of at least 1 and a shortlist of at "
                f"least 1, not {self.iterations}, {self.tenure} and {self.width}."
            )

    def warm_up(self, size: int = 2) -> float:
        """Compile its kernel, and for large problems the descent: working sets need no others."""
        return super().warm_up() + Swaps().warm_up(size)

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Search from the incumbent, and descend from the best assignment seen.

        Args:
            problem: the problem.
            seed: for the length of each rest.

        Returns:
            A local optimum.
        """
        if problem.is_large:
            return Decomposition(self).search(problem, seed)
        instance, order = prepare(problem)
        tenure = max(1, min(self.tenure, problem.size // 4))
        seen = tabu(instance, order, self.iterations, tenure, self.width, random_state(seed))
        last = Swaps().search(problem.restarted(assignment(problem, instance, order)), seed)
        return Found(last.assignment, last.status, seen + last.work)
