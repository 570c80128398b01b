"""The order in which layers give blocks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from secateur.core.registry import register
from secateur.core.selector import LayerOrder


@register("order", "log-size")
@dataclass(frozen=True)
class LogSize(LayerOrder):
    """A layer is drawn with probability in proportion to the logarithm of its size."""

    def choose(
        self,
        sizes: Mapping[str, int],
        turn: int,
        generator: torch.Generator,
        promise: Callable[[str], float],
    ) -> Sequence[str]:
        """Draw a layer.

        Args:
            sizes: prunable weights of each layer.
            turn: not used.
            generator: where randomness comes from.
            promise: not used.

        Returns:
            One layer.
        """
        weights = torch.tensor([float(size) for size in sizes.values()], dtype=torch.float64).log1p()
        return [list(sizes)[int(torch.multinomial(weights, 1, generator=generator))]]


@register("order", "round-robin")
@dataclass(frozen=True)
class RoundRobin(LayerOrder):
    """One layer after the other, from the first to the last and again."""

    def choose(
        self,
        sizes: Mapping[str, int],
        turn: int,
        generator: torch.Generator,
        promise: Callable[[str], float],
    ) -> Sequence[str]:
        """Take the next layer.

        Args:
            sizes: prunable weights of each layer.
            turn: how many blocks have been taken before this one.
            generator: not used.
            promise: not used.

        Returns:
            One layer.
        """
        return [list(sizes)[turn % len(sizes)]]


@register("order", "largest-gain")
@dataclass(frozen=True)
class LargestGain(LayerOrder):
    """The layer whose best block promises most; every layer is looked at for every block."""

    def patience(self, layers: int) -> int:
        """End a stage at the first block that changes nothing: no other promises more.

        Args:
            layers: not used.

        Returns:
            1.
        """
        return 1

    def choose(
        self,
        sizes: Mapping[str, int],
        turn: int,
        generator: torch.Generator,
        promise: Callable[[str], float],
    ) -> Sequence[str]:
        """Take the layer that promises most.

        Args:
            sizes: prunable weights of each layer.
            turn: not used.
            generator: not used.
            promise: layer -> predicted gain.

        Returns:
            One layer.
        """
        return [max(sizes, key=promise)]


@register("order", "all-layers")
@dataclass(frozen=True)
class AllLayers(LayerOrder):
    """One block over all layers: those exchanges that promise most, wherever they are."""

    def patience(self, layers: int) -> int:
        """End a stage at the first block that changes nothing: no other promises more.

        Args:
            layers: not used.

        Returns:
            1.
        """
        return 1

    def choose(
        self,
        sizes: Mapping[str, int],
        turn: int,
        generator: torch.Generator,
        promise: Callable[[str], float],
    ) -> Sequence[str]:
        """Take all layers.

        Args:
            sizes: prunable weights of each layer.
            turn: not used.
            generator: not used.
            promise: not used.

        Returns:
            All layers.
        """
        return list(sizes)
