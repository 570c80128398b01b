"""Weights near the boundary between pruned and kept."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.moments import Evidence
from secateur.core.registry import register
from secateur.core.score import Score
from secateur.core.selector import LayerView, Selector
from secateur.core.signal import Signal


@register("selector", "boundary")
@dataclass(frozen=True)
class Boundary(Selector):
    """The highest-scored pruned weights and the lowest-scored kept ones.

    The published selection (Rosenberg et al. 2024, arXiv:2411.17796).

    Attributes:
        score: by what.
    """

    score: Score

    @property
    def needs(self) -> frozenset[Signal]:
        """What the score needs."""
        return self.score.needs

    def gain(self, view: LayerView) -> Float[Tensor, "o i"]:
        """Give the score of the pruned weights and minus that of the kept ones."""
        needs = self.score.needs
        evidence = Evidence(
            # That of the point the stage has come to.
            view.linearisation.gradient(view.name) if Signal.GRADIENT in needs else None,
            view.tape.moments if Signal.MOMENTS in needs else None,
        )
        scores = self.score(view.reference, evidence, view.generator)
        return torch.where(view.mask, -scores, scores)
