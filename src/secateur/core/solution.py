"""What a solver found, and what is known about it."""

from dataclasses import dataclass
from enum import StrEnum

from jaxtyping import Bool
from torch import Tensor


class Status(StrEnum):
    """What is known about a solution."""

    OPTIMAL = "optimal"
    LOCAL_OPTIMUM = "local optimum"  # no single swap improves it
    FEASIBLE = "feasible"
    INCUMBENT = "incumbent"  # nothing better was found


@dataclass(frozen=True, eq=False)
class Solution:
    """What a solver found.

    Attributes:
        assignment: x; True = pruned.
        value: the objective at x, recomputed in float64.
        status: what is known about it.
        work: evaluated moves (swaps or flips) or assignments, as the solver says.
        solver: the name of what found it.
        bound: a proven lower bound on the objective, None where there is none.
    """

    assignment: Bool[Tensor, " n"]
    value: float
    status: Status
    work: int
    solver: str
    bound: float | None = None
