"""The task of naming the class of each sample: cross-entropy."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.data import Dataset

from secateur.core.data import Data
from secateur.core.errors import SecateurError
from secateur.core.modes import widened
from secateur.core.task import Batch, Split, Task
from secateur.tasks.augmentation import Augmentation
from secateur.tasks.divergence import softened_divergence
from secateur.tasks.division import Division
from secateur.tasks.from_torch import read_dataset
from secateur.tasks.labels import matching
from secateur.tasks.logits import as_logits, refuse_inputs
from secateur.tasks.samples import Labelled, Normalisation, Samples

# Numbers in the inputs of a pass, at most, where samples are pictures: 2,730 of 32 x 32, 55 of 224 x 224.
_NUMBERS = 1 << 23


@dataclass(frozen=True, eq=False)
class Classification(Task):
    """Samples of one class each; the loss is the cross-entropy of the model's logits, in nats.

    With z the logits of a sample, p = softmax(z) and y its label,

        loss = -log p_y,    gradient = p - e_y,    Hessian = diag(p) - p p'

    Attributes:
        samples: the data.
    """

    samples: Samples

    @property
    def disjoint(self) -> bool:
        """Whether no sample is both for calibration and for evaluation."""
        return self.samples.disjoint

    @property
    def per_pass(self) -> int | None:
        """How many pictures to pass through a model at once; None where those are all, or there are none."""
        shape = self.samples.calibration.inputs.shape[1:]
        most = max(1, _NUMBERS // max(1, shape.numel()))
        return (
            None if len(shape) < 3 or most >= max(self.size("calibration"), self.size("evaluation")) else most
        )

    @property
    def remarks(self) -> tuple[str, ...]:
        """What a user should know of how the data were read."""
        return self.samples.remarks

    @property
    def processor(self) -> Any:
        """The image processor that prepared the pictures, to be saved beside the model; None: none did."""
        return self.samples.processor

    def matched(self, labels: Mapping[int, str]) -> "Classification":
        """Number the classes as a model does, where the names of both are the same in another order.

        Args:
            labels: the model's labels by number, the ``id2label`` of its config.

        Returns:
            A task with the model's numbers; this one where the order is right already, or names say nothing.
        """
        samples = self.samples
        names, origin = samples.class_names, samples.origin
        numbers = matching(names, labels, origin)
        if numbers is None and names and labels and len(names) != len(labels):
            return self._remarking(
                f"no class in {origin} has a name that the model knows, and there are {len(names)} classes "
                f"where the model has {len(labels)}: they are numbered from 0 in the order of their names, "
                "which is right only if the model numbers them so, too."
            )
        if numbers is None or numbers == tuple(range(len(numbers))):
            return self
        number = torch.tensor(numbers)
        parts = [
            Labelled(part.inputs, number[part.labels.long()])
            for part in (samples.calibration, samples.evaluation)
        ]
        called = tuple(labels.get(at, "") for at in range(max(labels) + 1))
        numbered = replace(samples, calibration=parts[0], evaluation=parts[1], class_names=called)
        return Classification(numbered)._remarking(
            f"the classes in {origin} are in another order than the model's labels, and were numbered by "
            f"their names as the model does ('{names[0]}' is {numbers[0]})."
        )

    def augmented(self, *, flip: bool = False, shift: int = 0) -> "Classification":
        """Draw variants of the pictures where gradients of mini-batches are taken, as `Augmentation` says.

        Args:
            flip: mirror each picture with probability 1/2.
            shift: pixels that each picture is moved by in each direction, at most.

        Returns:
            A task with the same data; nothing else is varied, evaluation and guard samples among it.
        """
        return Classification(replace(self.samples, augmentation=Augmentation(flip, shift)))

    @property
    def variation(self) -> str:
        """How pictures are varied; empty: not at all."""
        augmentation = self.samples.augmentation
        return repr(augmentation) if augmentation.varies else ""

    def varied(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Draw a variant of each picture.

        Args:
            batch: the pictures, normalised.
            generator: where the randomness comes from, on the CPU.

        Returns:
            The variants, with the same labels.
        """
        return replace(batch, inputs=self.samples.augmentation(batch.inputs, generator))

    def _remarking(self, remark: str) -> "Classification":
        """Give the same task with one more thing to tell the user."""
        return Classification(replace(self.samples, remarks=(*self.samples.remarks, remark)))

    @classmethod
    def from_source(cls, source: Data) -> "Classification":
        """Load the data of a source.

        Args:
            source: where samples with labels come from.

        Returns:
            The task.

        Raises:
            SecateurError: the source gives no such samples.
        """
        task = source.task()
        if not isinstance(task, cls):
            raise SecateurError(f"the data source {source.part_name} gives no samples with a class each.")
        return task

    @classmethod
    def from_arrays(
        cls,
        inputs: Any,
        labels: Any,
        *,
        evaluation: tuple[Any, Any] | None = None,
        evaluation_fraction: float = 0.2,
        seed: int = 0,
        scale: float | None = None,
        mean: Sequence[float] = (0.0,),
        std: Sequence[float] = (1.0,),
        raw: bool = False,
    ) -> "Classification":
        """Take tensors, arrays or lists.

        Args:
            inputs: one row a sample; shared, not copied, where that can be.
            labels: the number of each sample's class, from 0.
            evaluation: inputs and labels to evaluate on; None: set a fraction of the samples aside.
            evaluation_fraction: which fraction, in [0, 1); 0: evaluate on the calibration data.
            seed: of the division.
            scale: what inputs are divided by; None: 255 for bytes (uint8), 1 otherwise.
            mean: subtracted after that; one number, or one a channel.
            std: divided by last; likewise.
            raw: hand the inputs to the model as they are, token numbers for instance.

        Returns:
            The task.
        """
        pile = Labelled.checked(inputs, labels, "the arrays given")
        other = None
        if evaluation is not None:
            same = evaluation[0] is inputs and evaluation[1] is labels
            other = pile if same else Labelled.checked(*evaluation, "the evaluation arrays given")
        normalisation = None if raw else Normalisation(scale, tuple(mean), tuple(std))
        division = Division(evaluation_fraction, seed=seed)
        return cls(division.divide(pile, other, normalisation, "the arrays given"))

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset[Any],
        *,
        evaluation: Dataset[Any] | None = None,
        division: Division | None = None,
    ) -> "Classification":
        """Read a torch data set of (input, label) pairs into memory.

        Its transforms are applied once, and what they give is what the model gets.

        Args:
            dataset: the data set, with a length.
            evaluation: another to evaluate on; None: set a part of the first aside.
            division: of the samples; only those it takes are read.

        Returns:
            The task.
        """
        return cls(read_dataset(dataset, evaluation, division or Division()))

    def size(self, split: Split) -> int:
        """Count the samples of a split.

        Args:
            split: which.

        Returns:
            The count.
        """
        return len(self.samples.part(split))

    def batch(self, split: Split, index: Int[Tensor, " s"], device: torch.device) -> Batch:
        """Gather samples and normalise them, on the device they go to: bytes travel faster.

        Args:
            split: where from.
            index: which.
            device: where to.

        Returns:
            The batch.
        """
        chosen = self.samples.part(split)
        inputs = chosen.inputs.index_select(0, index.to(chosen.inputs.device)).to(device)
        labels = chosen.labels.index_select(0, index.to(chosen.labels.device)).to(device)
        normalise = self.samples.normalisation
        return Batch(inputs if normalise is None else normalise(inputs), labels)

    def forward(self, model: nn.Module, batch: Batch) -> Float[Tensor, "s c"]:
        """Run the model, in the floating-point type of its weights.

        A model that cannot be run on the inputs is refused with a `SecateurError`, and one whose outputs
        are not one row of logits a sample, are NaN or infinite, or fewer than there are classes.

        Args:
            model: the network; it returns logits, or an object that has them as `.logits`.
            batch: the samples.

        Returns:
            The logits.
        """
        inputs = batch.inputs
        kind = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
        if kind is not None and inputs.is_floating_point() and inputs.dtype != kind:
            inputs = inputs.to(kind)
        try:
            returned = model(inputs)
        except (RuntimeError, TypeError, ValueError, IndexError) as error:
            refuse_inputs(inputs, error, self.samples.origin)
        return as_logits(returned, batch.size, self.samples.classes, self.samples.origin)

    def losses(self, outputs: Float[Tensor, "s c"], targets: Int[Tensor, " s"]) -> Float[Tensor, " s"]:
        """Compute the cross-entropy of each sample.

        Args:
            outputs: the logits.
            targets: the labels.

        Returns:
            -log p_y, nats.
        """
        return nn.functional.cross_entropy(widened(outputs), targets, reduction="none")

    def divergences(
        self,
        outputs: Float[Tensor, "s c"],
        trained: Float[Tensor, "s c"],
        targets: Int[Tensor, " s"],
        temperature: float,
    ) -> Float[Tensor, " s"]:
        """Compute T^2 KL(softmax(trained / T) || softmax(outputs / T)); labels do not count.

        Args:
            outputs: the logits.
            trained: those of the trained network.
            targets: the labels.
            temperature: T.

        Returns:
            Nats.
        """
        return softened_divergence(outputs, trained, temperature)

    def sample_targets(self, outputs: Float[Tensor, "s c"], generator: torch.Generator) -> Int[Tensor, " s"]:
        """Draw a label for each sample from softmax(logits), by inverting the distribution function.

        One uniform number a sample: two models that predict nearly the same draw nearly the same
        labels from the same seed, which keeps noise out of their comparison.

        Args:
            outputs: the logits.
            generator: where the randomness comes from, on the CPU.

        Returns:
            The labels, on the outputs' device.
        """
        steps = outputs.detach().to("cpu", torch.float64).softmax(1).cumsum(1)
        uniform = torch.rand(outputs.shape[0], 1, generator=generator, dtype=torch.float64)
        # Scaling by the last step keeps rounding from leaving a gap above it.
        return torch.searchsorted(steps, uniform * steps[:, -1:], right=True).squeeze(1).to(outputs.device)

    def loss_hessian_factors(self, outputs: Float[Tensor, "s c"]) -> Float[Tensor, "r s c"]:
        """Factor diag(p) - p p' = sum_c v_c v_c' with v_c = sqrt(p_c) (e_c - p).

        Args:
            outputs: the logits.

        Returns:
            One vector for each class and sample, [C, S, C]; exact.
        """
        p = widened(outputs).softmax(1)
        eye = torch.eye(p.shape[1], dtype=p.dtype, device=p.device)
        return p.T.sqrt()[:, :, None] * (eye[:, None, :] - p)

    def metrics(self, outputs: Float[Tensor, "s c"], targets: Int[Tensor, " s"]) -> dict[str, float]:
        """Sum loss and right answers.

        Args:
            outputs: the logits.
            targets: the labels.

        Returns:
            ``"loss"``, nats, and ``"accuracy"``, how many samples are named rightly.
        """
        return {
            "loss": float(self.losses(outputs, targets).double().sum()),
            "accuracy": float((outputs.argmax(1) == targets).sum()),
        }
