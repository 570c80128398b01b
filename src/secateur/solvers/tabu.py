"""Tabu search over swaps."""

from dataclasses import dataclass

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.solution import Status
from secateur.core.solver import Found, Solver
from secateur.solvers.arrays import assignment, prepare, random_state
from secateur.solvers.kernels import tabu


@register("solver", "tabu")
@dataclass(frozen=True)
class TabuSearch(Solver):
    """Makes the best swap each time, for better or worse, of variables that have rested.

    (Glover 1989.) A variable that moved rests for `tenure` iterations and, by chance, up to
    as many again; a swap to better than ever is made whoever rests. It starts from the
    incumbent and keeps the best assignment seen. Work counts the swaps evaluated.

    Attributes:
        iterations: swaps to make, at least 1.
        tenure: iterations of rest, at least 1; no more than a quarter of n is used.
    """

    iterations: int = 1000
    tenure: int = 10

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: a setting is below 1.
        """
        if not (self.iterations >= 1 and self.tenure >= 1):
            raise SecateurError(
                "the solver 'tabu' needs at least 1 iteration and a tenure of at least 1, "
                f"not {self.iterations} and {self.tenure}."
            )

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Search from the incumbent.

        Args:
            problem: the problem.
            seed: for the length of each rest.

        Returns:
            The best assignment seen: a local optimum, unless the search ended on it.
        """
        instance, order = prepare(problem)
        tenure = max(1, min(self.tenure, problem.size // 4))
        done, seen = tabu(instance, order, self.iterations, tenure, random_state(seed))
        status = Status.LOCAL_OPTIMUM if done else Status.FEASIBLE
        return Found(assignment(problem, instance, order), status, seen)
