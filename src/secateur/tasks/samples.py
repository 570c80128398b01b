"""Samples in memory: inputs and labels for calibration and for evaluation."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.task import Split
from secateur.tasks.augmentation import Augmentation
from secateur.tasks.checks import as_inputs, as_labels, check_lengths


@dataclass(frozen=True)
class Normalisation:
    """What is done to inputs before the model sees them: (x / scale - mean) / std.

    Attributes:
        scale: what inputs are divided by; None: 255 for bytes (uint8), 1 otherwise.
        mean: subtracted after that; one number, or one a channel (dimension 1 of the inputs).
        std: divided by last; likewise.
    """

    scale: float | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            SecateurError: a divisor is not positive, a number not finite, or means or deviations are missing.
        """
        if self.scale == 0 or 0 in self.std:
            raise SecateurError("normalisation divides by scale and std: neither may be 0.")
        numbers = (1.0 if self.scale is None else self.scale, *self.mean, *self.std)
        if not all(map(math.isfinite, numbers)) or min(numbers[0], *self.std) < 0:
            raise SecateurError(
                "normalisation needs numbers that are finite, and a scale and std that are positive."
            )
        if not self.mean or not self.std:
            raise SecateurError("normalisation needs at least one mean and one std, such as mean = [0.5].")

    def check(self, inputs: Shaped[Tensor, "s ..."], origin: str) -> None:
        """See that there is a mean and a deviation for each channel.

        Args:
            inputs: what is to be normalised.
            origin: where it comes from, for the message.

        Raises:
            SecateurError: their number is neither 1 nor that of the channels.
        """
        channels = inputs.shape[1] if inputs.dim() > 1 else 1
        for name, numbers in (("mean", self.mean), ("std", self.std)):
            if len(numbers) not in (1, channels):
                raise SecateurError(
                    f"normalisation has {len(numbers)} numbers as {name}, but the inputs in {origin} have "
                    f"the shape {list(inputs.shape)}: give 1 number, or {channels}, one for each channel "
                    "(dimension 1)."
                )

    def __call__(self, inputs: Shaped[Tensor, "s ..."]) -> Float[Tensor, "s ..."]:
        """Normalise, in float32, or in float64 where the inputs are.

        Args:
            inputs: as they are stored.

        Returns:
            What the model is called with.
        """
        scale = self.scale if self.scale is not None else (255.0 if inputs.dtype == torch.uint8 else 1.0)
        x = inputs if inputs.dtype in (torch.float32, torch.float64) else inputs.float()
        if scale != 1:
            x = x / scale
        if any(self.mean):
            x = x - self._spread(self.mean, x)
        return x / self._spread(self.std, x) if any(s != 1 for s in self.std) else x

    @staticmethod
    def _spread(numbers: tuple[float, ...], like: Tensor) -> Tensor:
        """Shape the numbers so that they act on dimension 1."""
        return like.new_tensor(numbers).reshape(-1, *[1] * max(0, like.dim() - 2))


@dataclass(frozen=True, eq=False)
class Labelled:
    """Inputs and their labels, of one length.

    Attributes:
        inputs: one row a sample, as stored (bytes for images).
        labels: the number of each sample's class, from 0.
    """

    inputs: Shaped[Tensor, "s ..."]
    labels: Int[Tensor, " s"]

    def __len__(self) -> int:
        """Count the samples."""
        return self.labels.shape[0]

    @classmethod
    def checked(cls, inputs: Any, labels: Any, origin: str) -> "Labelled":
        """Check and convert tensors, arrays or lists.

        Args:
            inputs: one row a sample.
            labels: one whole number a sample.
            origin: where they come from, for the message.

        Returns:
            The labelled samples.
        """
        x, y = as_inputs(inputs, origin), as_labels(labels, origin)
        check_lengths(x, y, origin)
        return cls(x, y)

    def select(self, index: Int[Tensor, " n"]) -> "Labelled":
        """Take some of the samples.

        Args:
            index: which.

        Returns:
            Those samples, in that order.
        """
        if index.numel() == len(self) and torch.equal(index, torch.arange(len(self))):
            return self
        return Labelled(
            self.inputs.index_select(0, index.to(self.inputs.device)),
            self.labels.index_select(0, index.to(self.labels.device)),
        )


@dataclass(frozen=True, eq=False)
class Samples:
    """All the data of a task.

    Attributes:
        calibration: what gradients and curvature are estimated from.
        evaluation: what reported numbers are measured on.
        class_names: names of the classes, in the order of their numbers; may be empty.
        normalisation: what is done to each batch; None: the model gets the inputs as stored
            (token numbers, for instance).
        disjoint: False where some sample is in both parts, so that reported numbers flatter.
        origin: where the data come from, for messages and reports.
        remarks: what a user should know of how the data were read.
        processor: the image processor of transformers that prepared the pictures; None: none did.
        augmentation: how variants of calibration samples are drawn for mini-batches; by default none are.
    """

    calibration: Labelled
    evaluation: Labelled
    class_names: tuple[str, ...] = ()
    normalisation: Normalisation | None = field(default_factory=Normalisation)
    disjoint: bool = True
    origin: str = "the data"
    remarks: tuple[str, ...] = ()
    processor: Any = None
    augmentation: Augmentation = field(default_factory=Augmentation)

    def __post_init__(self) -> None:
        """Check that the two parts belong together.

        Raises:
            SecateurError: samples differ in shape between the parts, or normalisation or augmentation does
                not fit.
        """
        shapes = [list(part.inputs.shape[1:]) for part in (self.calibration, self.evaluation)]
        if shapes[0] != shapes[1]:
            raise SecateurError(
                f"in {self.origin} calibration samples have the shape {shapes[0]} but evaluation samples "
                f"{shapes[1]}: both must be what the model takes."
            )
        if self.normalisation is not None:
            self.normalisation.check(self.calibration.inputs, self.origin)
        self.augmentation.check(self.calibration.inputs, self.origin)

    @property
    def classes(self) -> int:
        """How many outputs a model needs at least: the highest label and one."""
        return 1 + max(int(self.calibration.labels.max()), int(self.evaluation.labels.max()))

    def part(self, split: Split) -> Labelled:
        """Give one of the two parts.

        Args:
            split: which.

        Returns:
            Its samples.
        """
        return self.calibration if split == "calibration" else self.evaluation
