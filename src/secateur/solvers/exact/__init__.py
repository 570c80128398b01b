"""Solvers that prove their answers."""

from secateur.solvers.exact.branch_and_bound import BranchAndBound
from secateur.solvers.exact.exhaustive import Exhaustive
from secateur.solvers.exact.highs import Highs

__all__ = ["BranchAndBound", "Exhaustive", "Highs"]
