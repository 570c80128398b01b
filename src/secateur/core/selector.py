"""The abstract selector and the abstract order of layers: what the next block holds."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from secateur.core.curvature import Linearisation
from secateur.core.signal import Signal
from secateur.core.tape import LayerTape

Sizes = Mapping[str, int]
Promise = Callable[[str], float]


@dataclass(frozen=True, eq=False)
class LayerView:
    """A layer in the middle of a run: what a selector may look at.

    Attributes:
        name: the layer.
        reference: the trained weights w0.
        mask: what is kept now.
        anchor: what was kept where the step was linearised.
        stamps: the number of the last block that each weight was in; 0 = none yet.
        frozen: weights that never change in this run.
        tape: the layer's records.
        linearisation: the quadratic model of the step.
        ridge: the ridge of the step, nats per squared unit of weight.
        multiplier: what the gradient is multiplied with.
        generator: where randomness comes from.
    """

    name: str
    reference: Float[Tensor, "o i"]
    mask: Bool[Tensor, "o i"]
    anchor: Bool[Tensor, "o i"]
    stamps: Int[Tensor, "o i"]
    frozen: Bool[Tensor, "o i"]
    tape: LayerTape
    linearisation: Linearisation
    ridge: float
    multiplier: float
    generator: torch.Generator


class Selector(ABC):
    """Says how much each weight promises if the next block may exchange it."""

    part_name: ClassVar[str] = "selector"

    @property
    @abstractmethod
    def needs(self) -> frozenset[Signal]:
        """What must be recorded for it."""

    @property
    def remembers(self) -> bool:
        """Whether it holds back weights of earlier blocks, so that the next block differs anyway."""
        return False

    @abstractmethod
    def gain(self, view: LayerView) -> Float[Tensor, "o i"]:
        """Say how much each weight promises; -inf = must not be exchanged.

        Args:
            view: the layer as it stands.

        Returns:
            Gains: of the pruned weights and of the kept ones, those with the highest gain
            are exchanged first.
        """

    def freeze(self, mask: Bool[Tensor, "o i"], scores: Float[Tensor, "o i"]) -> Bool[Tensor, "o i"]:
        """Say, at the start of a run, which weights never change in it.

        Args:
            mask: the one-shot mask.
            scores: the scores it was drawn by.

        Returns:
            True = frozen; by default none is.
        """
        return torch.zeros_like(mask)


class LayerOrder(ABC):
    """Chooses the layer that the next block is taken from.

    Attributes:
        looks_everywhere: whether it takes the best that any layer promises, so that after a
            block that changed nothing it would choose the same again.
    """

    part_name: ClassVar[str] = "order"
    looks_everywhere: ClassVar[bool] = False

    def patience(self, layers: int, remembers: bool = False) -> int:
        """Say how many blocks in a row may change nothing before a stage ends.

        Args:
            layers: how many layers there are.
            remembers: whether the selector holds back weights of earlier blocks.

        Returns:
            That of the layers, or 1 where the next block would be the same.
        """
        return 1 if self.looks_everywhere and not remembers else layers

    @abstractmethod
    def choose(self, sizes: Sizes, turn: int, generator: torch.Generator, promise: Promise) -> Sequence[str]:
        """Choose the layer, or several, for one block.

        Args:
            sizes: prunable weights of each layer.
            turn: how many blocks have been taken before this one.
            generator: where randomness comes from.
            promise: layer -> the gain, in nats, that the selector predicts for the best
                block in it; costs a selection.

        Returns:
            The layers' names.
        """
