"""Allocations: from an overall density to exact counts."""

from secateur.allocation.erk import ERK
from secateur.allocation.network import Global
from secateur.allocation.uniform import SpareOutput, Uniform

__all__ = ["ERK", "Global", "SpareOutput", "Uniform"]
