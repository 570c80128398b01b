"""Pruners: the methods, and the only code that writes weights."""

from secateur.pruners.averaging import Averaging
from secateur.pruners.batches import Batches
from secateur.pruners.descent import Stage
from secateur.pruners.dsnot import DSnoT
from secateur.pruners.icbs import ICBS
from secateur.pruners.layerwise import Layerwise, Site
from secateur.pruners.learned_mask import LearnedMask
from secateur.pruners.network import Network
from secateur.pruners.one_shot import OneShot
from secateur.pruners.pruner import Outcome, Pruner, State
from secateur.pruners.recalibration import Recalibrated, Recalibration
from secateur.pruners.refit import Refit
from secateur.pruners.refits import ADMM, FisherSteps, GradientSteps, LeastSquares, Successive
from secateur.pruners.sequential import SequentialOneShot
from secateur.pruners.session import Session
from secateur.pruners.sparsegpt import SparseGPT
from secateur.pruners.swaps import GramSwaps
from secateur.pruners.trust import Region, Trust

__all__ = [
    "ADMM", "ICBS", "Averaging", "Batches", "DSnoT", "FisherSteps", "GradientSteps", "GramSwaps", "Layerwise",
    "LearnedMask", "LeastSquares", "Network", "OneShot", "Outcome", "Pruner", "Recalibrated", "Recalibration",
    "Refit", "Region", "SequentialOneShot", "Session", "Site", "SparseGPT", "Stage", "State",
    "Successive", "Trust",
]  # fmt: skip
