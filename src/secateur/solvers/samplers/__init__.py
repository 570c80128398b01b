"""Solvers of other people that sample: D-Wave's Ocean, OpenJij, simulated bifurcation."""

from secateur.solvers.samplers.bifurcation import SimulatedBifurcation
from secateur.solvers.samplers.dimod_solver import DimodSolver
from secateur.solvers.samplers.reads import Reads

__all__ = ["DimodSolver", "Reads", "SimulatedBifurcation"]
