"""The capture: run a batch once and keep what the parts said they need. The only hooks."""

from secateur.capture.footprint import Footprint, footprint
from secateur.capture.gradient import mean_gradient
from secateur.capture.inputs import listening
from secateur.capture.moments import moments
from secateur.capture.record import capture

__all__ = ["Footprint", "capture", "footprint", "listening", "mean_gradient", "moments"]
