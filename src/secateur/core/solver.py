"""The abstract solver: every one is feasible and never worse than the incumbent."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Bool
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.solution import Solution, Status


@dataclass(frozen=True)
class Found:
    """What `Solver.search` hands back, before it is checked.

    Attributes:
        assignment: a feasible x.
        status: what the search knows about it.
        work: evaluated moves or assignments.
        bound: a proven lower bound, if there is one.
    """

    assignment: Bool[Tensor, " n"]
    status: Status
    work: int
    bound: float | None = None


@dataclass(frozen=True)
class Solver(ABC):
    """Solves block problems. Its fields are its settings; it holds no state.

    A subclass implements `search`. `solve` recomputes the value, checks feasibility, and
    falls back to the incumbent, so that no subclass can return worse.
    """

    part_name: ClassVar[str] = "solver"

    @abstractmethod
    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Look for a good assignment.

        Args:
            problem: a problem in which at least one swap is possible.
            seed: for random choices; the same seed gives the same answer.

        Returns:
            What was found; it must be feasible.
        """

    def solve(self, problem: BlockProblem, seed: int = 0) -> Solution:
        """Solve a block problem, never worse than its incumbent.

        Args:
            problem: the problem.
            seed: for random choices.

        Returns:
            The best of what `search` found and the incumbent.

        Raises:
            SecateurError: `search` broke a group's count.
        """
        if not _swappable(problem):
            value = problem.value(problem.incumbent)
            return Solution(problem.incumbent, value, Status.OPTIMAL, 0, self.part_name, value)
        found = self.search(problem, seed)
        if not problem.is_feasible(found.assignment):
            raise SecateurError(f"the solver '{self.part_name}' returned an assignment that breaks a count.")
        value, before = problem.value(found.assignment), problem.value(problem.incumbent)
        if value >= before:
            status = found.status if found.status is Status.OPTIMAL else Status.INCUMBENT
            return Solution(problem.incumbent, before, status, found.work, self.part_name, found.bound)
        return Solution(found.assignment, value, found.status, found.work, self.part_name, found.bound)


def _swappable(problem: BlockProblem) -> bool:
    """Say whether some group has both a pruned and a kept variable."""
    if problem.size == 0:
        return False
    sizes = problem.groups.bincount(minlength=problem.counts.numel())
    return bool(((problem.counts > 0) & (problem.counts < sizes)).any())
