"""Distillation: the loss that compares a pruned network with the trained one."""

from collections.abc import Callable

import torch
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.modes import evaluating, multiplying
from secateur.core.task import Batch, Task
from secateur.pruners.network import Network

# Above it little changes but the rounding, which is multiplied by T^2.
HOTTEST = 100.0
# Beside the trained weights: those that the model holds meanwhile, in float32.
BYTES_A_WEIGHT = 4.0


def check_temperature(temperature: float | None, whose: str) -> None:
    """Refuse a temperature that none can be.

    Args:
        temperature: None where labels are what is learned from.
        whose: of what, for the message.

    Raises:
        SecateurError: it is not above 0, or above `HOTTEST`.
    """
    if temperature is not None and not 0 < temperature <= HOTTEST:
        raise SecateurError(
            f"the temperature of {whose} must be above 0 and at most {HOTTEST:g}, not {temperature}."
        )


def distilled(
    network: Network, task: Task, batch: Batch, temperature: float, bfloat16: bool
) -> Callable[[Tensor], Tensor]:
    """Pass a batch through the network as it was trained, and compare others with what that gives.

    The model holds the trained weights and statistics of BatchNorm meanwhile, and afterwards what it held.

    Args:
        network: the network.
        task: says how outputs are compared.
        batch: the samples.
        temperature: T of `Task.divergences`.
        bfloat16: multiply matrices in bfloat16.

    Returns:
        Outputs for the same batch -> how far those of each sample are from the trained network's.
    """
    standing, coarse = network.trained.standing(network.layers), multiplying(network.device, bfloat16)
    with torch.no_grad(), evaluating(network.model), standing, coarse:
        trained = task.forward(network.model, batch)
    return lambda outputs: task.divergences(outputs, trained.to(outputs.dtype), batch.targets, temperature)
