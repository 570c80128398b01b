"""Runs: prune a network, and what that leaves on the disk."""

from secateur.runs.ending import Run
from secateur.runs.folder import RunFolder
from secateur.runs.prune import prune

__all__ = ["Run", "RunFolder", "prune"]
