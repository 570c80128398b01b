"""A descent from another solver's answer."""

from dataclasses import dataclass, field

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.solution import Status
from secateur.core.solver import Found, Solver
from secateur.solvers.swaps import Swaps


@register("solver", "polish")
@dataclass(frozen=True)
class Polish(Solver):
    """Runs a solver and then another one from its answer, even from one worse than the incumbent.

    Work is summed, and the first solver's bound kept.

    Attributes:
        solver: what gives the start.
        descent: how to go on from there: any solver that starts from its incumbent.
        gap: the second is spared where the bound leaves at most this share of what can be
            gained (`Solution.gap`); 0 = where the first proved its answer optimal.
    """

    solver: Solver
    descent: Solver = field(default_factory=Swaps)
    gap: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: one of the two is no solver, or the gap is not a share.
        """
        if not isinstance(self.solver, Solver) or not isinstance(self.descent, Solver):
            raise SecateurError("the solver 'polish' needs a solver to polish, and one to do it with.")
        if not 0 <= self.gap <= 1:
            raise SecateurError(f"the solver 'polish' needs a gap between 0 and 1, not {self.gap}.")

    def warm_up(self, size: int = 2) -> float:
        """Compile what it is made of, and call no part that may cost money or wait for a clock."""
        return self.solver.warm_up(size) + self.descent.warm_up(size)

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Run the solver, then descend.

        Args:
            problem: the problem.
            seed: for both.

        Returns:
            The end of the descent; optimal where the solver's answer already was.
        """
        first = self.solver.search(problem, seed)
        if first.status is Status.OPTIMAL or self._is_near(problem, first):
            return first
        last = self.descent.solve(problem.restarted(first.assignment), seed, certify=False)
        status = first.status if last.status is Status.INCUMBENT else last.status
        return Found(last.assignment, status, first.work + last.work, first.bound)

    def _is_near(self, problem: BlockProblem, first: Found) -> bool:
        """Say whether the bound leaves little to gain."""
        if first.bound is None or self.gap == 0:
            return False
        possible = problem.value(problem.incumbent) - first.bound
        return problem.value(first.assignment) - first.bound <= self.gap * possible
