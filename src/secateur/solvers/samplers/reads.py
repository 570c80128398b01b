"""Assignments that somebody else has found, as a solver."""

from dataclasses import dataclass

from jaxtyping import Bool
from torch import Tensor

from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.solver import Solver
from secateur.solvers.samplers.sampling import SamplingSolver


@register("answers", "reads")
@dataclass(frozen=True, eq=False)
class Reads(SamplingSolver):
    """Takes the assignments that somebody else has found.

    Attributes:
        reads: any x, one a row.
        polish: what polishes the best of them; None = swap descent.
    """

    reads: Bool[Tensor, "m n"]
    polish: Solver | None = None

    def sample(self, problem: BlockProblem, seed: int) -> Bool[Tensor, "m n"]:
        """Give the assignments back."""
        return self.reads

    def descent(self) -> Solver:
        """Give what polishes."""
        return self.polish or super().descent()
