"""The abstract curvature: from a tape to a quadratic model of the loss."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from secateur.core.block import Block
from secateur.core.quadratic import QuadraticModel
from secateur.core.signal import Signal
from secateur.core.tape import Tape

# Layer -> how far its weights are from the reference weights, [out, in].
Displacement = Callable[[str], Tensor]


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

    def linearise_from(self, tape: Tape, displacement: Displacement) -> Linearisation:
        """Model the objective around the point at which a tape was recorded, told where that is.

        The loss does not depend on where the reference weights are; an objective that does overrides this.

        Args:
            tape: the records.
            displacement: of the weights from the reference weights there.

        Returns:
            The linearisation.
        """
        return self.linearise(tape)

    def measured(self, tape: Tape, before: Displacement, after: Displacement) -> float | None:
        """Measure the change of the objective itself, where that is not the loss of the model.

        Args:
            tape: the records.
            before: displacement of the weights from the reference weights where the tape was recorded.
            after: the same, now.

        Returns:
            The change, in the unit of the predicted one; None where the objective is the loss, which the
            model has to be run for.
        """
        return None
