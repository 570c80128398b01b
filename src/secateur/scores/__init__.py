"""Scores: how much each weight is worth keeping."""

from secateur.scores.gradient import Gradient
from secateur.scores.magnitude import Magnitude
from secateur.scores.random import Random
from secateur.scores.ria import RIA
from secateur.scores.wanda import Wanda

__all__ = ["RIA", "Gradient", "Magnitude", "Random", "Wanda"]
