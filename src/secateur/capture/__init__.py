"""The capture: run a batch once and keep what the parts said they need. The only hooks."""

from secateur.capture.gradient import mean_gradient
from secateur.capture.record import capture

__all__ = ["capture", "mean_gradient"]
