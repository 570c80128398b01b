"""Pruners: the methods, and the only code that writes weights."""

from secateur.pruners.averaging import Averaging
from secateur.pruners.batches import Batches
from secateur.pruners.descent import Stage
from secateur.pruners.icbs import ICBS
from secateur.pruners.learned_mask import LearnedMask
from secateur.pruners.network import Network
from secateur.pruners.one_shot import OneShot
from secateur.pruners.pruner import Outcome, Pruner, State
from secateur.pruners.session import Session
from secateur.pruners.trust import Region, Trust

__all__ = [
    "ICBS", "Averaging", "Batches", "LearnedMask", "Network", "OneShot", "Outcome", "Pruner", "Region",
    "Session", "Stage", "State", "Trust",
]  # fmt: skip
