"""Measure a network on the data of a task."""

import math
import time

import torch
from torch import nn

from secateur.core.errors import SecateurError
from secateur.core.modes import evaluating
from secateur.core.task import Split, Task


def evaluate(
    model: nn.Module, task: Task, split: Split = "evaluation", *, batch_size: int | None = None
) -> dict[str, float]:
    """Average the task's metrics over all samples of a split.

    The model runs where its weights are, in evaluation mode and without gradients; each module's
    mode is put back. Sums are kept in float64, so the batch size changes only rounding within a
    batch.

    Args:
        model: the network.
        task: data and metrics.
        split: ``"evaluation"`` for numbers to report.
        batch_size: samples a forward pass, > 0; memory grows with it, results do not change. None: as the
            task says, at most 1,000.

    Returns:
        The mean of each metric (``"loss"`` in nats a sample, ``"accuracy"`` as a fraction),
        ``"samples"``, and ``"seconds"`` that it took.

    Raises:
        SecateurError: the loss is NaN or infinite, or batch_size is not positive.
    """
    batch_size = min(1000, task.per_pass or 1000) if batch_size is None else batch_size
    if batch_size < 1:
        raise SecateurError(f"batch_size is {batch_size}: evaluation needs at least 1 sample a batch.")
    begin, size, device = time.perf_counter(), task.size(split), device_of(model)
    sums: dict[str, float] = {}
    # Not inference_mode: what a model caches in it could not be differentiated through afterwards.
    with evaluating(model), torch.no_grad():
        for index in torch.arange(size).split(batch_size):
            batch = task.batch(split, index, device)
            for name, value in task.metrics(task.forward(model, batch), batch.targets).items():
                sums[name] = sums.get(name, 0.0) + value
            _check(sums["loss"], split, int(index[0]), int(index[-1]))
    means = {name: total / size for name, total in sums.items()}
    return means | task.derived(means) | {"samples": float(size), "seconds": time.perf_counter() - begin}


def device_of(model: nn.Module) -> torch.device:
    """Say where a model's weights are.

    Args:
        model: the network.

    Returns:
        The device of its first parameter or buffer; the CPU where it has neither.
    """
    first = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if first is None else first.device


def _check(total: float, split: Split, first: int, last: int) -> None:
    """Refuse a sum that is no number as soon as it appears."""
    if not math.isfinite(total):
        raise SecateurError(
            f"the loss is {total} among {split} samples {first} to {last}: check the model's weights, and "
            "the normalisation of the inputs."
        )
