"""Block problems as files that other solvers read, and back."""

from secateur.exchange.files import SUFFIXES, check_path, load_indices, load_problem, save_problem
from secateur.exchange.sidecar import beside

__all__ = ["SUFFIXES", "beside", "check_path", "load_indices", "load_problem", "save_problem"]
