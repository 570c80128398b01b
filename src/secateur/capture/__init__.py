"""The capture: run a batch once and keep what the parts said they need. The only hooks."""

from secateur.capture.footprint import Footprint, footprint
from secateur.capture.gradient import mean_gradient
from secateur.capture.inputs import listening
from secateur.capture.moments import moments
from secateur.capture.record import capture
from secateur.capture.weights_in_use import check_used

__all__ = ["Footprint", "capture", "check_used", "footprint", "listening", "mean_gradient", "moments"]
