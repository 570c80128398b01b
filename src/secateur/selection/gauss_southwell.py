"""Weights whose flip the quadratic model likes best."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.errors import SecateurError, nearest
from secateur.core.registry import register
from secateur.core.selector import LayerView, Selector
from secateur.core.signal import Signal

Rule = Literal["diagonal", "lipschitz", "gradient"]


@register("selector", "gauss-southwell")
@dataclass(frozen=True)
class GaussSouthwell(Selector):
    """The predicted decrease of the loss when a weight alone is flipped.

    With d = w0 for a pruned weight and -w0 for a kept one,

        gain = -(a g d + 1/2 c d^2 + r d^2 s)

    s = 1 for a weight as it was where the step was linearised, and -1 for one that the step
    has flipped already. The rules differ in the curvature c of a weight (Nutini et al. 2022,
    arXiv:1712.08859, for steps of given length):

    - ``"diagonal"``: its own, diag(H) (GSD);
    - ``"lipschitz"``: the largest entry of diag(H) in its layer, which bounds the curvature along every
      single flip (GSL with one constant a layer);
    - ``"gradient"``: none; the loss's first order, and the ridge (GS).

    The curvature ``"hessian"`` has no diagonal at hand: with it c = 0 by any rule.

    Attributes:
        rule: one of these.

    Raises:
        SecateurError: there is no such rule.
    """

    rule: Rule = "diagonal"

    def __post_init__(self) -> None:
        """Check the rule."""
        if self.rule not in get_args(Rule):
            raise SecateurError(f"there is no rule '{self.rule}': {nearest(self.rule, get_args(Rule))}")

    @property
    def needs(self) -> frozenset[Signal]:
        """Nothing beyond what the curvature needs."""
        return frozenset()

    def gain(self, view: LayerView) -> Float[Tensor, "o i"]:
        """Predict the decrease of the loss by each flip."""
        gradient = view.linearisation.gradient(view.name)
        step = torch.where(view.mask, -view.reference, view.reference)
        away = view.ridge * torch.where(view.mask == view.anchor, 1, -1).to(step)
        return -(view.multiplier * gradient * step + (0.5 * self._curvature(view) + away) * step.square())

    def _curvature(self, view: LayerView) -> Tensor:
        """Give c, for each weight or for all of a layer."""
        if self.rule == "gradient":
            return view.reference.new_zeros(())
        diagonal = view.linearisation.diagonal(view.name)
        return diagonal if self.rule == "diagonal" else diagonal.max()
