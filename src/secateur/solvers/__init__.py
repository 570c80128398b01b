"""Solvers: from a block problem to an assignment, never worse than the incumbent."""

from secateur.solvers.annealing import Annealing
from secateur.solvers.batched import Batched
from secateur.solvers.best_of import BestOf
from secateur.solvers.decomposition import Decomposition
from secateur.solvers.default import Default
from secateur.solvers.exact import BranchAndBound, Exhaustive, Highs
from secateur.solvers.greedy import Greedy
from secateur.solvers.iterated import Iterated
from secateur.solvers.polish import Polish
from secateur.solvers.portfolio import Portfolio
from secateur.solvers.relaxation import Relaxation
from secateur.solvers.samplers import DimodSolver, SimulatedBifurcation
from secateur.solvers.swaps import Swaps
from secateur.solvers.tabu import TabuSearch

__all__ = [
    "Annealing", "Batched", "BestOf", "BranchAndBound", "Decomposition", "Default", "DimodSolver",
    "Exhaustive", "Greedy", "Highs", "Iterated", "Polish", "Portfolio", "Relaxation", "SimulatedBifurcation",
    "Swaps", "TabuSearch",
]  # fmt: skip
