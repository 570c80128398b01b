"""Refits: new values for the weights that are kept."""

from secateur.pruners.refits.admm import ADMM
from secateur.pruners.refits.fisher_steps import FisherSteps
from secateur.pruners.refits.gradient_steps import GradientSteps
from secateur.pruners.refits.least_squares import LeastSquares
from secateur.pruners.refits.successive import Successive

__all__ = ["ADMM", "FisherSteps", "GradientSteps", "LeastSquares", "Successive"]
