"""The abstract task: what a batch is, and the loss of each sample."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from secateur.core.errors import SecateurError

Split = Literal["calibration", "evaluation"]
INCOMPARABLE = (
    "{} does not say how outputs are compared with the trained network's: leave temperature out, or "
    "write its divergences."
)


@dataclass(frozen=True, eq=False)
class Batch:
    """Some samples.

    Attributes:
        inputs: what the model is called with; its first dimension counts samples.
        targets: what the loss compares with; likewise.
        index: the number of each sample in its split, for messages; None where nobody said.
    """

    inputs: Any
    targets: Tensor
    index: Int[Tensor, " s"] | None = None

    @property
    def size(self) -> int:
        """How many samples there are."""
        return self.targets.shape[0]

    def split(self, samples: int | None) -> "list[Batch]":
        """Divide the batch into smaller ones.

        Args:
            samples: in each, at most; None: the batch stays whole.

        Returns:
            The parts, which share memory with the batch; the batch itself where its inputs are
            neither a tensor nor tensors by name.
        """
        divisible = isinstance(self.inputs, Tensor | dict)
        if samples is None or samples >= self.size or not divisible:
            return [self]
        parts = range(0, self.size, samples)
        return [
            Batch(
                _rows(self.inputs, at, at + samples),
                self.targets[at : at + samples],
                None if self.index is None else self.index[at : at + samples],
            )
            for at in parts
        ]


def _rows(inputs: Any, begin: int, end: int) -> Any:
    """Take some rows of a tensor, or of each of several."""
    if isinstance(inputs, dict):
        return {name: value[begin:end] for name, value in inputs.items()}
    return inputs[begin:end]


def check_losses(losses: Float[Tensor, " s"], what: str, index: Int[Tensor, " s"] | None = None) -> None:
    """Refuse losses that are not finite.

    Args:
        losses: the loss of each sample.
        what: what the samples are called.
        index: the number of each.

    Raises:
        SecateurError: one is NaN or infinite.
    """
    if not torch.isfinite(losses).all():
        bad = (~torch.isfinite(losses)).nonzero().flatten().cpu()
        first = "" if index is None else f" (the first is number {int(index[bad[0]])}, counted from 0)"
        raise SecateurError(
            f"the loss is NaN or infinite for {len(bad)} of {losses.numel()} {what}{first}: "
            "check the inputs and their normalisation, and the weights."
        )


class Task(ABC):
    """Data and loss: the only part that knows what a sample and a label are."""

    @property
    def disjoint(self) -> bool:
        """Whether no sample is both for calibration and for evaluation."""
        return True

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of how the data were read."""
        return ()

    @property
    def ordered(self) -> bool:
        """Whether neighbouring samples resemble one another, as pieces of one document do."""
        return False

    def prunable(self, model: nn.Module) -> tuple[str, ...]:
        """Say which layers are pruned where the user names none.

        Args:
            model: the network.

        Returns:
            Glob patterns of their names.
        """
        return ("*",)

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

    def divergences(
        self,
        outputs: Float[Tensor, "s ..."],
        trained: Float[Tensor, "s ..."],
        targets: Tensor,
        temperature: float,
    ) -> Float[Tensor, " s"]:
        """Compute how far the outputs of each sample are from the trained network's, differentiable.

        T^2 KL(q || p) with p = softmax(outputs / T) and q = softmax(trained / T), nats a sample, where
        outputs are logits; a task that does not say how outputs are compared refuses.

        Args:
            outputs: what `forward` gave.
            trained: what it gave with the trained weights.
            targets: the labels, which may say what does not count.
            temperature: T > 0: the larger, the more the unlikely labels count.

        Raises:
            SecateurError: the task does not say how outputs are compared.
        """
        raise SecateurError(INCOMPARABLE.format(type(self).__name__))

    @property
    def comparable(self) -> bool:
        """Whether the task says how outputs are compared with the trained network's."""
        return type(self).divergences is not Task.divergences

    @abstractmethod
    def sample_targets(self, outputs: Float[Tensor, "s ..."], generator: torch.Generator) -> Tensor:
        """Draw labels from the model's own predictions.

        Args:
            outputs: what `forward` gave.
            generator: where the randomness comes from, on the CPU.

        Returns:
            Labels shaped like the targets.
        """

    @property
    def variation(self) -> str:
        """How `varied` changes samples, as far as a run must know to be resumed; empty: not at all."""
        return ""

    def varied(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Draw variants of samples that keep their targets, for gradients of mini-batches.

        Args:
            batch: the samples.
            generator: where the randomness comes from, on the CPU; where a batch is passed in parts, they
                take from it one after the other.

        Returns:
            The variants; by default the samples as they are.
        """
        return batch

    def redraw(self, outputs: Float[Tensor, "s ..."], targets: Tensor, generator: torch.Generator) -> Tensor:
        """Draw labels in the place of the true ones; where those count for nothing, so do the new ones.

        Args:
            outputs: what `forward` gave.
            targets: the true labels.
            generator: where the randomness comes from, on the CPU.

        Returns:
            Labels shaped like the targets.
        """
        return self.sample_targets(outputs, generator)

    def check(self, model: nn.Module) -> None:
        """Refuse a model that the data do not fit, before anything is run.

        Args:
            model: the network.
        """
        return

    @property
    def per_pass(self) -> int | None:
        """How many samples to pass through a model at once where nobody says; None: the caller decides."""
        return None

    def derived(self, means: dict[str, float]) -> dict[str, float]:
        """Give further metrics that follow from the means of those that are summed.

        Args:
            means: mean by metric.

        Returns:
            The further ones.
        """
        return {}

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
