"""What a layer was given when it ran, as rows of numbers."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import torch
from jaxtyping import Shaped
from torch import Tensor

from secateur.core.moments import Moments
from secateur.core.patches import Patches

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Inputs:
    """The inputs of a layer in one call.

    Attributes:
        tensor: as the module was given it, without gradients.
        patches: how a convolution cuts it; None: its last dimension are the inputs.
    """

    tensor: Shaped[Tensor, "..."]
    patches: Patches | None = None

    @property
    def version(self) -> int | None:
        """A number that writing in place raises; None where nothing keeps count."""
        return None if self.tensor.is_inference() else self.tensor._version

    @property
    def numbers(self) -> int:
        """How many numbers it holds, padding included."""
        if self.patches is None:
            return self.tensor.numel()
        return self.patches.padded(self.tensor[:1]).numel() * len(self.tensor)

    @property
    def positions(self) -> int:
        """How many rows there are: positions of all samples."""
        if self.patches is None:
            return self.tensor.numel() // max(1, self.tensor.shape[-1])
        return self.patches.positions(self.patches.padded(self.tensor[:1])) * len(self.tensor)

    @property
    def overlap(self) -> int:
        """In how many rows one number may be."""
        return 1 if self.patches is None else math.prod(self.patches.kernel)

    def moments(self, gram: bool = False, trained: "Inputs | None" = None) -> Moments:
        """Sum over all positions.

        Args:
            gram: whether the products of different inputs are wanted.
            trained: what the trained network has in their place; None: no products with that are wanted.

        Returns:
            The sums; of a convolution in groups for each group. Products with inputs of another shape, as
            where experts were routed otherwise, are left out.
        """
        wide = self.tensor.to(torch.promote_types(self.tensor.dtype, torch.float32))
        other = None if trained is None or trained.tensor.shape != wide.shape else trained.tensor.to(wide)
        if self.patches is None:
            rows = None if other is None else other.reshape(-1, wide.shape[-1])
            return Moments.of(wide.reshape(-1, wide.shape[-1]), gram, rows)
        padded = self.patches.padded
        return Moments.of_patches(self.patches, padded(wide), gram, None if other is None else padded(other))

    def same_as(self, other: "Inputs") -> bool:
        """Say whether two calls were given the same numbers in memory, cut in the same way.

        Args:
            other: those of the other call.

        Returns:
            True where they were.
        """
        one, two = self.tensor, other.tensor
        return (
            self.patches == other.patches
            and one.data_ptr() == two.data_ptr()
            and one.shape == two.shape
            and one.stride() == two.stride()
            and one.dtype == two.dtype
        )


class Latest(Generic[T]):
    """Remembers what was made of the latest inputs: layers with the same inputs run one after the other.

    The inputs are held meanwhile, so that no other tensor takes their place in memory.
    """

    def __init__(self) -> None:
        """Remember nothing."""
        self._latest: tuple[Inputs, int | None, T] | None = None

    def of(self, inputs: Inputs, make: Callable[[], T]) -> T:
        """Give what was made of the same numbers, or make it.

        Args:
            inputs: of one call.
            make: makes it, where other inputs came last, or may have been written to since.

        Returns:
            What was made.
        """
        version, latest = inputs.version, self._latest
        if latest is None or version is None or latest[1] != version or not latest[0].same_as(inputs):
            latest = self._latest = (inputs, version, make())
        return latest[2]
