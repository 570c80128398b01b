"""Evaluation: what a network is worth, and what is left of it."""

from secateur.evaluation.choices import ZeroShot, zero_shot
from secateur.evaluation.compare import ELSEWHERE, Comparison, cautions, compare
from secateur.evaluation.harness import harness
from secateur.evaluation.likelihood import Likelihoods, log_likelihoods
from secateur.evaluation.measure import device_of, evaluate
from secateur.evaluation.perplexity import Perplexity, perplexity
from secateur.evaluation.questions import KINDS, Question, read_questions
from secateur.evaluation.sparsity import LayerSparsity, sparsity

__all__ = [
    "ELSEWHERE",
    "KINDS",
    "Comparison",
    "LayerSparsity",
    "Likelihoods",
    "Perplexity",
    "Question",
    "ZeroShot",
    "cautions",
    "compare",
    "device_of",
    "evaluate",
    "harness",
    "log_likelihoods",
    "perplexity",
    "read_questions",
    "sparsity",
    "zero_shot",
]
