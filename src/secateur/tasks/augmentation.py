"""Random variants of pictures: mirrored and shifted."""

from dataclasses import dataclass

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from secateur.core.errors import SecateurError


@dataclass(frozen=True)
class Augmentation:
    """Moves each picture by a few pixels and mirrors it, at random.

    With x a picture, padded with zeros wherever it is not defined, d uniform among the whole numbers from
    -shift to shift for each spatial axis and f uniform in {0, 1}, all drawn for each picture:

        x'[c, i, j] = x[c, i + d_1, j' + d_2],    j' = j, or width - 1 - j where flip is set and f = 1

    Zero is the mean colour where pictures are normalised to a mean of zero. These are the variants that
    networks for small pictures are trained with (Krizhevsky et al. 2012; He et al. 2015, arXiv:1512.03385:
    4 pixels and mirroring on CIFAR-10).

    Attributes:
        flip: mirror the last axis of each picture with probability 1/2.
        shift: pixels that each spatial axis is moved by, at most; 0: none.

    Raises:
        SecateurError: the shift is negative or no whole number.
    """

    flip: bool = False
    shift: int = 0

    def __post_init__(self) -> None:
        """Check the shift."""
        if not isinstance(self.shift, int) or self.shift < 0:
            raise SecateurError(
                "shift is how many pixels pictures are moved by at most, a whole number from 0, not "
                f"{self.shift}."
            )

    @property
    def varies(self) -> bool:
        """Whether pictures are changed at all."""
        return self.flip or self.shift > 0

    def check(self, inputs: Shaped[Tensor, "s ..."], origin: str) -> None:
        """See that inputs are pictures which can be moved so far.

        Args:
            inputs: the pictures, [samples, channels, height, width]; any number of spatial axes from 1.
            origin: where they come from, for the message.

        Raises:
            SecateurError: they have fewer than three dimensions, or are not larger than the shift.
        """
        shape = list(inputs.shape)
        if self.varies and len(shape) < 3:
            raise SecateurError(
                f"flip and shift are for pictures [samples, channels, height, width], but the inputs in "
                f"{origin} have the shape {shape}: leave them out."
            )
        if self.shift and self.shift >= min(shape[2:]):
            raise SecateurError(
                f"a shift of {self.shift} pixels moves the inputs in {origin}, of shape {shape}, out of the "
                f"picture: it must be below {min(shape[2:])}."
            )

    def __call__(
        self, inputs: Shaped[Tensor, "s *picture"], generator: torch.Generator
    ) -> Shaped[Tensor, "s *picture"]:
        """Draw a variant of each picture.

        Numbers are drawn picture by picture, so that pictures passed in parts, one after the other with the
        same generator, become what they become in one piece.

        Args:
            inputs: the pictures after normalisation, [samples, channels, height, width]; any number of
                spatial axes from 1.
            generator: where the randomness comes from, on the CPU.

        Returns:
            The variants, new tensors on the inputs' device; the inputs themselves where nothing is varied.
        """
        self.check(inputs, "the batch")
        if not self.varies:
            return inputs
        samples, channels, *sides = inputs.shape
        # In float64 every number takes the same draws of the generator, however many are drawn at once.
        drawn = torch.rand(samples, 1 + len(sides), generator=generator, dtype=torch.float64)
        begin = (drawn[:, 1:] * (2 * self.shift + 1)).long()  # in the padded picture
        along = [torch.arange(side) + begin[:, axis, None] for axis, side in enumerate(sides)]
        if self.flip:
            along[-1] = torch.where(drawn[:, :1] < 0.5, along[-1].flip(1), along[-1])
        index = torch.zeros(samples, 1, dtype=torch.long)
        for side, at in zip(sides, along, strict=True):  # the number of each pixel in the padded picture
            index = (index[:, :, None] * (side + 2 * self.shift) + at[:, None, :]).flatten(1)
        padded = nn.functional.pad(inputs, [self.shift] * (2 * len(sides))).flatten(2)
        chosen = index.to(inputs.device)[:, None].expand(-1, channels, -1)
        return padded.gather(2, chosen).reshape(inputs.shape)
