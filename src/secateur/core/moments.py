"""Sums over the inputs of a layer: what scores and layer-wise objectives know of them."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.patches import Patches


@dataclass(frozen=True, eq=False)
class Moments:
    """Sums over all positions x of a layer's inputs, in float32 or wider.

    A convolution in groups has other inputs for the outputs of each group, and sums for each.

    Attributes:
        count: how many positions there are.
        total: sum of x, [in] or [groups, in].
        squares: sum of x * x, likewise.
        gram: sum of x x', [in, in] or [groups, in, in]; None where nobody asked for it.
        cross: sum of x0 x', likewise, with x0 what the trained network has in the place of x; None where
            nobody asked for it, or positions are not the same.
    """

    count: int
    total: Float[Tensor, "*g i"]
    squares: Float[Tensor, "*g i"]
    gram: Float[Tensor, "*g i i"] | None = None
    cross: Float[Tensor, "*g i i"] | None = None

    @property
    def groups(self) -> int:
        """How many sums of different inputs there are."""
        return 1 if self.total.dim() == 1 else len(self.total)

    @property
    def norms(self) -> Float[Tensor, "*g i"]:
        """The Euclidean norm of each input over all positions."""
        return self.squares.sqrt()

    @property
    def mean(self) -> Float[Tensor, "*g i"]:
        """The mean of each input."""
        return self.total / max(1, self.count)

    @property
    def variance(self) -> Float[Tensor, "*g i"]:
        """The variance of each input, its mean taken off."""
        return (self.squares / max(1, self.count) - self.mean.square()).clamp(min=0)

    def beside(self, weight: Float[Tensor, "o i"]) -> Float[Tensor, "#o i"]:
        """Give the norms of the inputs that each weight is multiplied with.

        Args:
            weight: of the layer.

        Returns:
            The norms, one row for all outputs, or one for each where they have other inputs.
        """
        norms = self.norms
        if norms.dim() == 1:
            return norms[None]
        return norms.repeat_interleave(len(weight) // len(norms), 0)

    def by_group(self, outputs: int) -> "list[tuple[slice, Moments]]":
        """Give the sums of each group of outputs that have the same inputs.

        Args:
            outputs: of the layer.

        Returns:
            Which outputs, and the sums over their inputs, of each group.
        """
        if self.total.dim() == 1:
            return [(slice(0, outputs), self)]
        each = outputs // self.groups
        grams, crosses = ([None] * self.groups if x is None else x for x in (self.gram, self.cross))
        return [
            (slice(group * each, (group + 1) * each), Moments(self.count, *sums))
            for group, sums in enumerate(zip(self.total, self.squares, grams, crosses, strict=True))
        ]

    @classmethod
    def of(
        cls, x: Float[Tensor, "t i"], gram: bool = False, trained: Float[Tensor, "t i"] | None = None
    ) -> "Moments":
        """Sum over some positions.

        Args:
            x: inputs, one row a position.
            gram: whether the products of different inputs are wanted.
            trained: what the trained network has in their place; None: no products with that are wanted.

        Returns:
            The sums.
        """
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        products = wide.T @ wide if gram else None
        cross = None if trained is None else trained.to(wide).T @ wide
        return cls(wide.shape[0], wide.sum(0), wide.square().sum(0), products, cross)

    @classmethod
    def of_patches(
        cls,
        patches: Patches,
        x: Float[Tensor, "n c *space"],
        gram: bool = False,
        trained: Float[Tensor, "n c *space"] | None = None,
    ) -> "Moments":
        """Sum over the patches of a convolution.

        Args:
            patches: how the inputs are cut.
            x: padded inputs.
            gram: whether the products of different inputs are wanted.
            trained: what the trained network has in their place; None: no products with that are wanted.

        Returns:
            The sums.
        """
        total, squares = patches.sums(x), patches.sums(x.square())
        products = patches.gram(x) if gram else None
        cross = None if trained is None else patches.cross(trained, x)
        if patches.groups == 1:
            total, squares = total[0], squares[0]
            products, cross = (None if each is None else each[0] for each in (products, cross))
        return cls(patches.positions(x), total, squares, products, cross)

    def __add__(self, other: "Moments") -> "Moments":
        """Join the sums over two sets of positions."""
        return Moments(
            self.count + other.count,
            self.total + other.total,
            self.squares + other.squares,
            _both(self.gram, other.gram),
            _both(self.cross, other.cross),
        )


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Add what both have."""
    return None if a is None or b is None else a + b


@dataclass(frozen=True, eq=False)
class Evidence:
    """What a score may look at beside the weights; None where it did not ask.

    Attributes:
        gradient: of the mean loss with respect to the layer's weight, [out, in].
        moments: of the layer's inputs.
    """

    gradient: Float[Tensor, "o i"] | None = None
    moments: Moments | None = None
