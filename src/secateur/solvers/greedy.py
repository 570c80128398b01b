"""Greedy construction: one variable at a time."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float, Int

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.solution import Status
from secateur.core.solver import Found, Solver
from secateur.solvers.arrays import as_tensor, largest, prepare
from secateur.solvers.kernels.greedy import construct
from secateur.solvers.kernels.instance import Instance
from secateur.solvers.walk import product

# Large problems: as many shares, chosen one after another, keep the fields near enough to the truth.
_SHARES = 64


@register("solver", "greedy")
@dataclass(frozen=True)
class Greedy(Solver):
    """Prunes one variable at a time, each time the one that raises the objective least.

    With fields f = l + B x it prunes the i with the least f_i + 1/2 B_ii among the groups
    whose count is not reached: O(n) for each variable pruned. From the other end it restores
    the j with the least 1/2 B_jj - f_j until no group has too many pruned. By factors and above
    4,096 variables, each group's count is reached in 64 shares, the cheapest variables a share,
    with the fields computed anew for each: O(n s) a share. The incumbent plays no part. Work
    counts the choices compared.

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
        large = problem.is_large
        instance, order = prepare(problem, dense=not large)
        linear, wanted = instance.linear, instance.counts
        if self.start == "pruned":
            # In y = 1 - x the objective has the same B, and the linear term -(l + B 1).
            total = product(instance.factors, instance.factors.sum(0)) if large else instance.matrix.sum(1)
            linear, wanted = -(linear + total), np.diff(instance.starts) - wanted
        if large:
            groups = problem.groups.cpu().numpy()
            chosen, seen = _in_shares(instance, groups, linear, wanted), _SHARES * problem.size
        else:
            chosen, seen = construct(instance, order, linear, wanted)
        return Found(as_tensor(problem, chosen ^ (self.start == "pruned")), Status.FEASIBLE, seen)


def _in_shares(
    instance: Instance,
    groups: Int[np.ndarray, " n"],
    linear: Float[np.ndarray, " n"],
    wanted: Int[np.ndarray, " groups"],
) -> Bool[np.ndarray, " n"]:
    """Choose the cheapest of each group, a share of its count at a time."""
    chosen = np.zeros(groups.size, dtype=np.bool_)
    for share in range(1, _SHARES + 1):
        cost = linear + product(instance.factors, instance.factors[chosen].sum(0)) + instance.half
        chosen = largest(np.where(chosen, np.inf, -cost), groups, -(-wanted * share // _SHARES))
    return chosen
