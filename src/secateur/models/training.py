"""A small training loop, for demonstrations: Secateur prunes networks that others have trained."""

import math
from dataclasses import dataclass, field

import torch
from torch import nn

from secateur.core.errors import SecateurError
from secateur.core.registry import register
from secateur.core.seeds import generator
from secateur.core.task import Task
from secateur.models.mlp import MLP
from secateur.models.part import Model, seeded


def fit(
    model: nn.Module, task: Task, *, epochs: int, batch_size: int, learning_rate: float, seed: int
) -> None:
    """Train a network in place with Adam on the calibration samples of a task.

    Kingma and Ba 2014, arXiv:1412.6980; the learning rate falls to 0 along half a cosine.
    A last mini-batch of one sample is left out, since batch normalisation cannot be trained with it.
    The evaluation samples are not looked at. torch's global generator is left where it was.

    Args:
        model: the network; it is left in evaluation mode, without gradients.
        task: the data and the loss.
        epochs: passes over the calibration samples, > 0.
        batch_size: samples a step, > 0.
        learning_rate: at the start, > 0.
        seed: of the order of the samples, and of dropout.

    Raises:
        SecateurError: the loss became NaN or infinite.
    """
    device = next(model.parameters()).device
    size = task.size("calibration")
    optimiser = torch.optim.Adam(model.parameters(), learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs * math.ceil(size / batch_size))
    model.train()
    with seeded(seed, "training"), torch.enable_grad():
        for epoch in range(epochs):
            order = torch.randperm(size, generator=generator(seed, "training order", epoch))
            for index in order.split(batch_size):
                if index.numel() == 1 < min(size, batch_size):
                    continue
                batch = task.batch("calibration", index, device)
                loss = task.losses(task.forward(model, batch), batch.targets).mean()
                if not torch.isfinite(loss):
                    raise SecateurError(
                        f"the loss became {float(loss)} in epoch {epoch + 1} of training: lower "
                        f"learning_rate from {learning_rate}."
                    )
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                schedule.step()
    model.zero_grad(set_to_none=True)
    model.eval()


@register("model", "trained")
@dataclass(frozen=True)
class Trained(Model):
    """Another model part, trained on the calibration data of the task before it is given out.

    The defaults are those of the demonstration: a perceptron for scikit-learn's digits.

    Attributes:
        network: what to train.
        epochs: passes over the calibration samples.
        batch_size: samples a step.
        learning_rate: of Adam, at the start.
        seed: of the order of the samples, and of dropout.
    """

    network: Model = field(default_factory=lambda: MLP((64, 128, 64, 10)))
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 0.005
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            SecateurError: one is not positive and finite.
        """
        for name in ("epochs", "batch_size", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise SecateurError(f"{name} is {getattr(self, name)}: training needs a positive number.")

    def build(self, task: Task | None = None) -> nn.Module:
        """Build the network and train it.

        Args:
            task: the data.

        Returns:
            The trained network.

        Raises:
            SecateurError: there is no task, or the loss became NaN or infinite.
        """
        if task is None:
            raise SecateurError("a model called 'trained' needs data to be trained on: build it with a task.")
        model = self.network.build(task)
        fit(
            model,
            task,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            seed=self.seed,
        )
        return model
