"""The abstract task: what a batch is, and the loss of each sample."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from secateur.core.errors import SecateurError

Split = Literal["calibration", "evaluation"]


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples.

    Attributes:
        inputs: what the model is called with; its first dimension counts samples.
        targets: what the loss compares with; likewise.
    """

    inputs: Any
    targets: Tensor

    @property
    def size(self) -> int:
        """How many samples there are."""
        return self.targets.shape[0]


def check_losses(losses: Float[Tensor, " s"], what: str) -> None:
    """Refuse losses that are not finite.

    Args:
        losses: the loss of each sample.
        what: what the samples are called.

    Raises:
        SecateurError: one is NaN or infinite.
    """
    if not torch.isfinite(losses).all():
        bad = int((~torch.isfinite(losses)).sum())
        raise SecateurError(
            f"the loss is NaN or infinite for {bad} of {losses.numel()} {what}: "
            "check the inputs and their normalisation, and the weights."
        )


class Task(ABC):
    """Data and loss: the only part that knows what a sample and a label are."""

    @property
    def disjoint(self) -> bool:
        """Whether no sample is both for calibration and for evaluation."""
        return True

    @abstractmethod
    def size(self, split: Split) -> int:
        """Count the samples of a split.

        Args:
            split: ``"calibration"`` (estimates gradients and curvature) or ``"evaluation"``
                (gives the reported numbers).

        Returns:
            The count.
        """

    @abstractmethod
    def batch(self, split: Split, index: Int[Tensor, " s"], device: torch.device) -> Batch:
        """Fetch samples.

        Args:
            split: where from.
            index: which.
            device: where to.

        Returns:
            The batch.
        """

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> Float[Tensor, "s ..."]:
        """Run the model.

        Args:
            model: the network.
            batch: the samples.

        Returns:
            The outputs that the loss is computed from, one row a sample.
        """

    @abstractmethod
    def losses(self, outputs: Float[Tensor, "s ..."], targets: Tensor) -> Float[Tensor, " s"]:
        """Compute the loss of each sample, differentiable.

        Args:
            outputs: what `forward` gave.
            targets: the labels.

        Returns:
            The losses, in nats a sample.
        """

    @abstractmethod
    def sample_targets(self, outputs: Float[Tensor, "s ..."], generator: torch.Generator) -> Tensor:
        """Draw labels from the model's own predictions.

        Args:
            outputs: what `forward` gave.
            generator: where the randomness comes from, on the CPU.

        Returns:
            Labels shaped like the targets.
        """

    @abstractmethod
    def loss_hessian_factors(self, outputs: Float[Tensor, "s ..."]) -> Float[Tensor, "r s ..."]:
        """Factor the Hessian of each sample's loss with respect to its outputs.

        Args:
            outputs: what `forward` gave.

        Returns:
            Vectors v_r with sum_r v_r v_r' = that Hessian, for each sample.
        """

    @abstractmethod
    def metrics(self, outputs: Float[Tensor, "s ..."], targets: Tensor) -> dict[str, float]:
        """Sum what is reported over the samples, ``"loss"`` among it.

        Args:
            outputs: what `forward` gave.
            targets: the labels.

        Returns:
            Sums by name; the caller divides by the number of samples.
        """
