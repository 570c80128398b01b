"""Swap descent from another solver's answer."""

from dataclasses import dataclass, field

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.solution import Status
from secateur.core.solver import Found, Solver
from secateur.solvers.arrays import restart
from secateur.solvers.swaps import Swaps


@register("solver", "polish")
@dataclass(frozen=True)
class Polish(Solver):
    """Runs a solver and then swap descent from its answer, even one worse than the incumbent.

    Work is summed, and the solver's bound kept.

    Attributes:
        solver: what gives the start.
        descent: how to descend from there.
    """

    solver: Solver
    descent: Swaps = field(default_factory=Swaps)

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: what is to be polished is no solver.
        """
        if not isinstance(self.solver, Solver) or not isinstance(self.descent, Swaps):
            raise SecateurError("the solver 'polish' needs a solver to polish, and 'swaps' to do it with.")

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Run the solver, then descend.

        Args:
            problem: the problem.
            seed: for the solver.

        Returns:
            The end of the descent; optimal where the solver's answer already was.
        """
        first = self.solver.search(problem, seed)
        if first.status is Status.OPTIMAL:
            return first
        last = self.descent.search(restart(problem, first.assignment), seed)
        return Found(last.assignment, last.status, first.work + last.work, first.bound)
