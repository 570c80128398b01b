"""The order in which layers give blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch

from secateur.core.registry import register
from secateur.core.selector import LayerOrder, Promise, Sizes


@register("order", "log-size")
@dataclass(frozen=True)
class LogSize(LayerOrder):
    """A layer of n weights is drawn with probability in proportion to log(1 + n)."""

    def choose(self, sizes: Sizes, turn: int, generator: torch.Generator, promise: Promise) -> Sequence[str]:
        """Draw a layer."""
        weights = torch.tensor([float(size) for size in sizes.values()], dtype=torch.float64).log1p()
        return [list(sizes)[int(torch.multinomial(weights, 1, generator=generator))]]


@register("order", "round-robin")
@dataclass(frozen=True)
class RoundRobin(LayerOrder):
    """One layer after the other, from the first to the last and again."""

    def choose(self, sizes: Sizes, turn: int, generator: torch.Generator, promise: Promise) -> Sequence[str]:
        """Take the next layer."""
        return [list(sizes)[turn % len(sizes)]]


@register("order", "largest-gain")
@dataclass(frozen=True)
class LargestGain(LayerOrder):
    """The layer whose best block promises most; every layer is looked at for every block."""

    looks_everywhere: ClassVar[bool] = True

    def choose(self, sizes: Sizes, turn: int, generator: torch.Generator, promise: Promise) -> Sequence[str]:
        """Take the layer that promises most."""
        return [max(sizes, key=promise)]


@register("order", "all-layers")
@dataclass(frozen=True)
class AllLayers(LayerOrder):
    """One block over all layers: those exchanges that promise most, wherever they are."""

    looks_everywhere: ClassVar[bool] = True

    def choose(self, sizes: Sizes, turn: int, generator: torch.Generator, promise: Promise) -> Sequence[str]:
        """Take all layers."""
        return list(sizes)
