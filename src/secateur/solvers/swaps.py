"""Swap descent: the local search that every other solver can end with."""

from dataclasses import dataclass
from typing import Literal

from secateur.core.errors import SecateurError
from secateur.core.problem import LARGE, BlockProblem
from secateur.core.registry import register
from secateur.core.solution import Status
from secateur.core.solver import Found, Solver
from secateur.solvers.arrays import assignment, prepare
from secateur.solvers.decomposition import Decomposition
from secateur.solvers.kernels.descent import descend, descend_first

# Descents end by themselves; this many swaps a variable bounds the time if rounding misleads one.
_SWAPS_PER_VARIABLE = 100


@register("solver", "swaps")
@dataclass(frozen=True)
class Swaps(Solver):
    """Swaps a kept and a pruned variable of the same group while that lowers the objective.

    With fields f = l + B x, pruning i and restoring j changes the objective by

        (f_i + 1/2 B_ii) + (1/2 B_jj - f_j) - B_ij

    Pairs that the largest B_ij of their row could not make the best are passed over, so that
    finding the best swap takes O(n) and a scan of few pairs. A swap counts as better only if
    it gains more than rounding could feign. By factors and above 4,096 variables the descent goes
    a working set at a time (`Decomposition`). Work counts the swaps evaluated.

    Attributes:
        rule: ``"best"`` makes the best swap each time; ``"first"`` goes round the kept
            variables and makes the first swap that improves.
        max_swaps: swaps to make at most, at least 0; None = until none improves.
    """

    rule: Literal["best", "first"] = "best"
    max_swaps: int | None = None

    def __post_init__(self) -> None:
        """Check the settings.

        Raises:
            SecateurError: there is no such rule, or max_swaps is negative.
        """
        if self.rule not in ("best", "first"):
            raise SecateurError(f"the solver 'swaps' has the rules 'best' and 'first', not '{self.rule}'.")
        if self.max_swaps is not None and not self.max_swaps >= 0:
            raise SecateurError(f"the solver 'swaps' needs max_swaps of at least 0, not {self.max_swaps}.")

    def warm_up(self, size: int = 2) -> float:
        """Compile its kernel, and for large problems those of working sets."""
        return super().warm_up() + (Decomposition(self).warm_up() if size > LARGE else 0.0)

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Descend from the incumbent.

        Args:
            problem: the problem.
            seed: not used.

        Returns:
            The end of the descent: a local optimum, unless the swaps ran out.
        """
        if problem.is_large:
            return Decomposition(self).search(problem, seed)
        instance, order = prepare(problem)
        limit = _SWAPS_PER_VARIABLE * problem.size if self.max_swaps is None else self.max_swaps
        kernel = descend if self.rule == "best" else descend_first
        done, seen = kernel(instance, order, limit)
        status = Status.LOCAL_OPTIMUM if done else Status.FEASIBLE
        return Found(assignment(problem, instance, order), status, seen)
