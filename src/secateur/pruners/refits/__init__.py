"""Refits: new values for the weights that a mask keeps."""

from secateur.pruners.refits.fisher_steps import FisherSteps
from secateur.pruners.refits.gradient_steps import GradientSteps
from secateur.pruners.refits.least_squares import LeastSquares
from secateur.pruners.refits.successive import Successive

__all__ = ["FisherSteps", "GradientSteps", "LeastSquares", "Successive"]
