"""Solvers: from a block problem to an assignment, never worse than the incumbent."""

from secateur.core.solver import Solver
from secateur.solvers.annealing import Annealing
from secateur.solvers.best_of import BestOf
from secateur.solvers.exhaustive import Exhaustive
from secateur.solvers.greedy import Greedy
from secateur.solvers.polish import Polish
from secateur.solvers.swaps import Swaps
from secateur.solvers.tabu import TabuSearch


def default_solver() -> Solver:
    """Make the solver that pruning uses unless told otherwise.

    Returns:
        The better of the swap descents from the incumbent and from a greedy construction.
    """
    return BestOf((Swaps(), Polish(Greedy())))


__all__ = [
    "Annealing", "BestOf", "Exhaustive", "Greedy", "Polish", "Swaps", "TabuSearch", "default_solver",
]  # fmt: skip
