"""The exact Hessian, by double backward."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.block import Block
from secateur.core.curvature import Curvature, Linearisation
from secateur.core.quadratic import QuadraticModel
from secateur.core.registry import register
from secateur.core.signal import Signal
from secateur.core.tape import Tape


class HessianLinearisation(Linearisation):
    """The Taylor form of second order; indefinite in general."""

    def __init__(self, tape: Tape) -> None:
        """Start at the point of the tape.

        Args:
            tape: the records.
        """
        self.tape = tape
        self.displacement: dict[str, Tensor] = {}
        self._gradients = tape.gradients

    def gradient(self, name: str) -> Float[Tensor, "o i"]:
        """Give g + H d for a layer."""
        return self._gradients[name]

    def diagonal(self, name: str) -> Float[Tensor, "o i"]:
        """Give zeros: the diagonal of a Hessian is not to be had at the price of a pass."""
        return torch.zeros_like(self._gradients[name])

    def quadratic(self, block: Block) -> QuadraticModel:
        """Give gradient and Hessian of a block."""
        assert self.tape.hessian is not None
        return QuadraticModel(block.gather(self._gradients), dense=self.tape.hessian(block))

    def move(self, block: Block, model: QuadraticModel, delta: Float[Tensor, " n"]) -> None:
        """Move the point, at the price of a double backward pass."""
        assert self.tape.hessian_product is not None
        for name, piece in block.split(delta).items():
            start = self.tape.layers[name].gradient
            total = self.displacement.setdefault(name, torch.zeros_like(start))
            total.view(-1)[block.indices[name]] += piece.to(total.dtype)
        products = self.tape.hessian_product(self.displacement)
        self._gradients = {name: g + products[name] for name, g in self.tape.gradients.items()}


@register("curvature", "hessian")
@dataclass(frozen=True)
class Hessian(Curvature):
    """The exact Hessian of the mean loss over a block, [n, n], by double backward.

    Costs n Hessian-vector products a block, and one pass a move.
    """

    needs: ClassVar[frozenset[Signal]] = frozenset({Signal.GRADIENT, Signal.HESSIAN})

    def linearise(self, tape: Tape) -> Linearisation:
        """Model the loss around the point of a tape."""
        return HessianLinearisation(tape)
