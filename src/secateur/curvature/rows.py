"""Curvatures that are sums of squares of gradient rows: H = (1/S) sum_q G_q G_q'."""

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from secateur.core.block import Block
from secateur.core.curvature import Curvature, Linearisation
from secateur.core.errors import SecateurError
from secateur.core.quadratic import QuadraticModel
from secateur.core.registry import register
from secateur.core.signal import Signal
from secateur.core.tape import Tape


class RowLinearisation(Linearisation):
    """Carries the response of the rows, r_q = G_q . d, to all moves d made so far.

    The gradient at the moved point is g + (1/S) sum_q r_q G_q; nothing else changes.
    """

    def __init__(self, tape: Tape) -> None:
        """Start at the point of the tape, with no response.

        Args:
            tape: the records, with rows.
        """
        self.tape = tape
        some = next(iter(tape.layers.values()))
        assert some.draws > 0
        self.response = some.gradient.new_zeros(some.draws * tape.samples)
        self._moved = False
        self._diagonals: dict[str, Tensor] = {}

    def gradient(self, name: str) -> Float[Tensor, "o i"]:
        """Give g + H d for a layer: one matrix product."""
        layer = self.tape.layers[name]
        if not self._moved:
            return layer.gradient
        return layer.gradient + layer.pullback(self.response / self.tape.samples)

    def diagonal(self, name: str) -> Float[Tensor, "o i"]:
        """Give the diagonal of H for a layer, computed once a tape."""
        if name not in self._diagonals:
            self._diagonals[name] = self.tape.layers[name].diagonal()
        return self._diagonals[name]

    def quadratic(self, block: Block) -> QuadraticModel:
        """Gather the block's gradient and factors."""
        scale = self.tape.samples**0.5
        factors = self.tape.factors(block).div_(scale)
        gradient = block.gather(self.tape.gradients)
        if self._moved:
            gradient = gradient + factors @ (self.response / scale)
        return QuadraticModel(gradient, factors=factors)

    def move(self, block: Block, model: QuadraticModel, delta: Float[Tensor, " n"]) -> None:
        """Add the block's move to the response."""
        assert model.factors is not None
        moved = delta.nonzero().squeeze(1)
        self.response += (
            delta[moved].to(model.factors.dtype) @ model.factors[moved]
        ) * self.tape.samples**0.5
        self._moved = True


@dataclass(frozen=True)
class RowCurvature(Curvature):
    """A curvature whose rows are on the tape."""

    def linearise(self, tape: Tape) -> Linearisation:
        """Model the loss around the point of a tape."""
        return RowLinearisation(tape)


@register("curvature", "empirical-fisher")
@dataclass(frozen=True)
class EmpiricalFisher(RowCurvature):
    """Rows are the gradients of each sample's loss at its own label (the published choice).

    H = (1/S) sum_s g_s g_s'. Cheap, as the rows are those of the gradient; biased where the
    fit is not perfect (Kunstner et al. 2019, arXiv:1905.12558).
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.INPUTS, Signal.GRADIENT, Signal.LOSS_ROWS})


@register("curvature", "fisher")
@dataclass(frozen=True)
class Fisher(RowCurvature):
    """Rows are gradients at labels drawn from the model's own predictions.

    In expectation over the labels H is the Fisher information, which for cross-entropy is
    the Gauss-Newton matrix (Martens 2020, arXiv:1412.1193).

    Attributes:
        draws: labels drawn for each sample, >= 1; memory and time grow with it.

    Raises:
        SecateurError: draws < 1.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.INPUTS, Signal.GRADIENT, Signal.SAMPLED_ROWS})
    draws: int = 1

    def __post_init__(self) -> None:
        """Check the number of draws."""
        if self.draws < 1:
            raise SecateurError(f"draws must be at least 1, not {self.draws}.")


@register("curvature", "gauss-newton")
@dataclass(frozen=True)
class GaussNewton(RowCurvature):
    """Rows are pullbacks of the exact factors of the loss's Hessian at the outputs.

    H = (1/S) sum_s J_s' (d2 loss / d outputs2) J_s, with as many rows a sample as there are
    classes (Schraudolph 2002).
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.INPUTS, Signal.GRADIENT, Signal.GAUSS_NEWTON_ROWS})
