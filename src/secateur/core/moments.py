"""Sums over the inputs of a layer: what scores and layer-wise objectives know of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over all positions x of a layer's inputs, in float32 or wider.

    Attributes:
        count: how many positions there are.
        total: sum of x, [in].
        squares: sum of x * x, [in].
        gram: sum of x x', [in, in]; None where nobody asked for it.
    """

    count: int
    total: Float[Tensor, " i"]
    squares: Float[Tensor, " i"]
    gram: Float[Tensor, "i i"] | None = None

    @property
    def norms(self) -> Float[Tensor, " i"]:
        """The Euclidean norm of each input over all positions."""
        return self.squares.sqrt()

    @property
    def mean(self) -> Float[Tensor, " i"]:
        """The mean of each input."""
        return self.total / max(1, self.count)

    @property
    def variance(self) -> Float[Tensor, " i"]:
        """The variance of each input, its mean taken off."""
        return (self.squares / max(1, self.count) - self.mean.square()).clamp(min=0)

    @classmethod
    def of(cls, x: Float[Tensor, "t i"], gram: bool = False) -> "Moments":
        """Sum over some positions.

        Args:
            x: inputs, one row a position.
            gram: whether the products of different inputs are wanted.

        Returns:
            The sums.
        """
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        return cls(wide.shape[0], wide.sum(0), wide.square().sum(0), wide.T @ wide if gram else None)

    def __add__(self, other: "Moments") -> "Moments":
        """Join the sums over two sets of positions."""
        both = self.gram is not None and other.gram is not None
        return Moments(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            self.gram + other.gram if both else None,  # type: ignore[operator]
        )


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a score may look at beside the weights; None where it did not ask.

    Attributes:
        gradient: of the mean loss with respect to the layer's weight, [out, in].
        moments: of the layer's inputs.
    """

    gradient: Float[Tensor, "o i"] | None = None
    moments: Moments | None = None
