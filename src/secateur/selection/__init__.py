"""Selection: which weights, of which layer, the next block holds."""

from secateur.selection.boundary import Boundary
from secateur.selection.gauss_southwell import GaussSouthwell
from secateur.selection.orders import AllLayers, LargestGain, LogSize, RoundRobin
from secateur.selection.pairs import Pick, pick_pairs
from secateur.selection.restrictions import Fixed, Tabu

__all__ = [
    "AllLayers", "Boundary", "Fixed", "GaussSouthwell", "LargestGain", "LogSize", "Pick",
    "RoundRobin", "Tabu", "pick_pairs",
]  # fmt: skip
