"""The abstract curvature: from a tape to a quadratic model of the loss."""

from abc import ABC, abstractmethod
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from secateur.core.block import Block
from secateur.core.quadratic import QuadraticModel
from secateur.core.signal import Signal
from secateur.core.tape import Tape


class Linearisation(ABC):
    """A quadratic model of the loss around the weights at which a tape was recorded.

    It moves with the mask: after `move`, gradients are those of the model at the new point.
    """

    @abstractmethod
    def gradient(self, name: str) -> Float[Tensor, "o i"]:
        """Give the model's gradient at the current point for a whole layer.

        Args:
            name: the layer.

        Returns:
            g + H d.
        """

    @abstractmethod
    def diagonal(self, name: str) -> Float[Tensor, "o i"]:
        """Give the diagonal of the curvature for a whole layer.

        Args:
            name: the layer.

        Returns:
            diag(H).
        """

    @abstractmethod
    def quadratic(self, block: Block) -> QuadraticModel:
        """Give gradient and curvature of a block at the current point.

        Args:
            block: the weights.

        Returns:
            The block's quadratic model.
        """

    @abstractmethod
    def move(self, block: Block, model: QuadraticModel, delta: Float[Tensor, " n"]) -> None:
        """Move the point: the block's weights change by `delta`.

        Args:
            block: the weights.
            model: what `quadratic` gave for the block.
            delta: the change of each weight.
        """


class Curvature(ABC):
    """Builds linearisations from tapes."""

    part_name: ClassVar[str] = "curvature"
    needs: ClassVar[frozenset[Signal]] = frozenset()
    draws: int = 1

    @abstractmethod
    def linearise(self, tape: Tape) -> Linearisation:
        """Model the loss around the point at which a tape was recorded.

        Args:
            tape: the records.

        Returns:
            The linearisation.
        """
