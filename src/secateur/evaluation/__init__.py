"""Evaluation: what a network is worth, and what is left of it."""

from secateur.evaluation.compare import Comparison, cautions, compare
from secateur.evaluation.measure import device_of, evaluate
from secateur.evaluation.sparsity import LayerSparsity, sparsity

__all__ = [
    "Comparison",
    "LayerSparsity",
    "cautions",
    "compare",
    "device_of",
    "evaluate",
    "sparsity",
]
