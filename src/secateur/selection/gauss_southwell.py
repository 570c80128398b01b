"""Weights whose flip the quadratic model likes best."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.registry import register
from secateur.core.selector import LayerView, Selector
from secateur.core.signal import Signal


@register("selector", "gauss-southwell")
@dataclass(frozen=True)
class GaussSouthwell(Selector):
    """The predicted decrease of the loss when a weight alone is flipped.

    With d = w0 for a pruned weight and -w0 for a kept one,

        gain = -(a g d + 1/2 h d^2 + r d^2 s),   h = diag(H),

    s = 1 for a weight as it was where the step was linearised, and -1 for one that the step
    has flipped already (Nutini et al. 2022, arXiv:1712.08859, the rule GS-Q for flips).
    """

    @property
    def needs(self) -> frozenset[Signal]:
        """Nothing beyond what the curvature needs."""
        return frozenset()

    def gain(self, view: LayerView) -> Float[Tensor, "o i"]:
        """Predict the decrease of the loss by each flip."""
        gradient = view.linearisation.gradient(view.name)
        diagonal = view.linearisation.diagonal(view.name)
        step = torch.where(view.mask, -view.reference, view.reference)
        away = view.ridge * torch.where(view.mask == view.anchor, 1, -1).to(step)
        return -(view.multiplier * gradient * step + (0.5 * diagonal + away) * step.square())
