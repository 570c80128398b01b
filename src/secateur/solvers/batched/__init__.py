"""Many block problems, or many restarts of one, at once in torch: for accelerators."""

from secateur.solvers.batched.annealing import anneal
from secateur.solvers.batched.descent import Ends, descend
from secateur.solvers.batched.relaxation import dual_bound, relax
from secateur.solvers.batched.solver import Batched
from secateur.solvers.batched.stack import Stack

__all__ = ["Batched", "Ends", "Stack", "anneal", "descend", "dual_bound", "relax"]
