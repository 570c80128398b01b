"""The curvature of rank one that the mean gradient alone gives."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from secateur.core.block import Block
from secateur.core.curvature import Curvature, Linearisation
from secateur.core.quadratic import QuadraticModel
from secateur.core.registry import register
from secateur.core.signal import Signal
from secateur.core.tape import Tape


class MeanGradientLinearisation(Linearisation):
    """H = g g', so that the gradient stays along g: (1 + g.d) g."""

    def __init__(self, tape: Tape) -> None:
        """Start at the point of the tape.

        Args:
            tape: the records.
        """
        self.gradients = tape.gradients
        self.response = 0.0

    def gradient(self, name: str) -> Float[Tensor, "o i"]:
        """Give g + H d for a layer."""
        return self.gradients[name] * (1 + self.response)

    def diagonal(self, name: str) -> Float[Tensor, "o i"]:
        """Give the diagonal of H for a layer."""
        return self.gradients[name].square()

    def quadratic(self, block: Block) -> QuadraticModel:
        """Give gradient and curvature of a block."""
        gradient = block.gather(self.gradients)
        return QuadraticModel(gradient * (1 + self.response), factors=gradient[:, None])

    def move(self, block: Block, model: QuadraticModel, delta: Float[Tensor, " n"]) -> None:
        """Move the point."""
        assert model.factors is not None
        self.response += float(model.factors[:, 0].double() @ delta.double())


@register("curvature", "mean-gradient")
@dataclass(frozen=True)
class MeanGradient(Curvature):
    """H = g g' with g the mean gradient (Rosenberg et al. 2024, arXiv:2411.17796)."""

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.GRADIENT})

    def linearise(self, tape: Tape) -> Linearisation:
        """Model the loss around the point of a tape."""
        return MeanGradientLinearisation(tape)
