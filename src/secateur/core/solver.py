"""The abstract solver: every one is feasible and never worse than the incumbent."""

import math
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Bool
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.problem import LARGE, BlockProblem
from secateur.core.registry import lookup
from secateur.core.solution import Solution, Status

# Sums of the sizes of a problem's entries below this lose their digits.
_LEAST = 1e-280


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

    def warm_up(self, size: int = 2) -> float:
        """Solve problems of no difficulty, so that what has to be compiled is.

        Args:
            size: of the problems to come: large ones may take other ways than small ones.

        Returns:
            Seconds that it took.
        """
        begin = time.perf_counter()
        for n in (4, LARGE + 1) if size > LARGE else (4,):
            self.solve(tiny(n))
        return time.perf_counter() - begin

    def solve(self, problem: BlockProblem, seed: int = 0, *, certify: bool = True) -> Solution:
        """Solve a block problem, never worse than its incumbent.

        Args:
            problem: the problem.
            seed: for random choices.
            certify: where the search gave no lower bound and the relaxation is known to be
                convex, take the relaxation's (computed once for a problem).

        Returns:
            The best of what `search` found and the incumbent. It is optimal where the search
            proved it, or where it meets the lower bound.

        Raises:
            SecateurError: `search` broke a group's count, or sums of entries overflow or vanish.
        """
        before = problem.value(problem.incumbent)
        if problem.magnitude and not _LEAST < problem.magnitude < math.inf:
            raise SecateurError(
                "a block problem has entries too large or too small for float64: scale the objective."
            )
        if not _swappable(problem):
            return Solution(problem.incumbent, before, Status.OPTIMAL, 0, self.part_name, before, before)
        found = self.search(problem, seed)
        self._check(found, problem)
        value = problem.value(found.assignment)
        if found.bound is not None and not -math.inf < found.bound <= value + problem.rounding:
            raise SecateurError(
                f"{type(self).__name__}.search returned the lower bound {found.bound} with an assignment "
                f"whose value is {value}."
            )
        if found.bound is None and certify and found.status is not Status.OPTIMAL:
            found = replace(found, bound=lookup("solver", "relaxation")().lower_bound(problem))
        return judged(found, problem.incumbent, value, before, problem.rounding, self.part_name)

    def _check(self, found: Found, problem: BlockProblem) -> None:
        """Refuse what a search must not hand back: solvers come from anywhere."""
        x = getattr(found, "assignment", None)
        if not isinstance(found, Found) or not isinstance(x, Tensor) or x.dtype != torch.bool:
            raise SecateurError(
                f"{type(self).__name__}.search must return a Found with a tensor of bools in it."
            )
        if x.shape != problem.incumbent.shape or x.device != problem.incumbent.device:
            raise SecateurError(
                f"{type(self).__name__}.search returned an assignment that is not of the incumbent's shape, "
                "or not on its device."
            )
        if not problem.is_feasible(x):
            raise SecateurError(f"the solver '{self.part_name}' returned an assignment that breaks a count.")


def judged(
    found: Found, incumbent: Bool[Tensor, " n"], value: float, before: float, rounding: float, name: str
) -> Solution:
    """Choose between what was found and the incumbent, and say what is known of it.

    Args:
        found: what a search handed back, feasible.
        incumbent: x before.
        value: the objective at what was found.
        before: the objective at the incumbent.
        rounding: differences of the objective up to this are none.
        name: of the solver.

    Returns:
        The better of the two; optimal where the search proved it, or where it meets the bound.
    """
    assignment, status, bound = found.assignment, found.status, found.bound
    same = torch.equal(assignment, incumbent)
    if not same and value >= before:
        assignment, value = incumbent, before
        status = status if status is Status.OPTIMAL else Status.INCUMBENT
    if same and status is Status.FEASIBLE:
        status = Status.INCUMBENT
    if bound is not None and value - bound <= rounding:
        status = Status.OPTIMAL
    if status is Status.OPTIMAL:
        bound = value if bound is None else min(bound, value)
    return Solution(assignment, value, status, found.work, name, bound, before)


def tiny(size: int) -> BlockProblem:
    """Pose a problem that is solved at once.

    Args:
        size: variables, at least 2.

    Returns:
        One in which the incumbent is the worst assignment.
    """
    linear = torch.linspace(1.0, -1.0, size, dtype=torch.float64)
    groups, factors = torch.zeros(size, dtype=torch.long), linear[:, None] / size
    return BlockProblem(0.0, linear, groups, linear > 0, factors=factors)


def _swappable(problem: BlockProblem) -> bool:
    """Say whether some group has both a pruned and a kept variable."""
    if problem.size == 0:
        return False
    sizes = problem.groups.bincount(minlength=problem.counts.numel())
    return bool(((problem.counts > 0) & (problem.counts < sizes)).any())
