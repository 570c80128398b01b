"""Greedy construction: one variable at a time."""

from dataclasses import dataclass
from typing import Literal

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.solution import Status
from secateur.core.solver import Found, Solver
from secateur.solvers.arrays import as_tensor, prepare
from secateur.solvers.kernels import construct


@register("solver", "greedy")
@dataclass(frozen=True)
class Greedy(Solver):
    """Prunes one variable at a time, each time the one that raises the objective least.

    With fields f = l + B x it prunes the i with the least f_i + 1/2 B_ii among the groups
    whose count is not reached: O(n) for each variable pruned. From the other end it restores
    the j with the least 1/2 B_jj - f_j until no group has too many pruned. The incumbent
    plays no part. Work counts the choices compared.

    Attributes:
        start: ``"kept"`` (nothing pruned at first) or ``"pruned"`` (everything).
    """

    start: Literal["kept", "pruned"] = "kept"

    def __post_init__(self) -> None:
        """Check the setting.

        Raises:
            SecateurError: there is no such start.
        """
        if self.start not in ("kept", "pruned"):
            raise SecateurError(f"the solver 'greedy' starts from 'kept' or 'pruned', not '{self.start}'.")

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Construct an assignment.

        Args:
            problem: the problem.
            seed: not used.

        Returns:
            The assignment, which may be worse than the incumbent.
        """
        instance, order = prepare(problem)
        if self.start == "kept":
            chosen, seen = construct(instance, order, instance.linear, instance.counts)
            return Found(as_tensor(problem, chosen), Status.FEASIBLE, seen)
        # In y = 1 - x the objective has the same B, and the linear term -(l + B 1).
        sizes = instance.starts[1:] - instance.starts[:-1]
        linear = -(instance.linear + instance.matrix.sum(1))
        chosen, seen = construct(instance, order, linear, sizes - instance.counts)
        return Found(as_tensor(problem, ~chosen), Status.FEASIBLE, seen)
