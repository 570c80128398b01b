"""Curvatures: from a tape to a quadratic model of the loss."""

from secateur.curvature.gram import Gram
from secateur.curvature.hessian import Hessian
from secateur.curvature.mean_gradient import MeanGradient
from secateur.curvature.rows import EmpiricalFisher, Fisher, GaussNewton

__all__ = ["EmpiricalFisher", "Fisher", "GaussNewton", "Gram", "Hessian", "MeanGradient"]
