"""What layer-wise pruners and refits share: their samples, their memory, and writing a few layers."""

from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.layer import Layer
from secateur.core.seeds import generator
from secateur.core.stack import find_stack
from secateur.pruners.session import Session


def gram_records(session: Session, least: bool) -> int:
    """Say how many bytes of Gram matrices there are at a time.

    Args:
        session: knows the network.
        least: one matrix, the sum with another and that, rather than those of a decoder layer.

    Returns:
        The bytes; of layers with the same inputs, which share a matrix, as if each had its own.
    """
    layers = session.network.layers
    sizes = [layer.gram_bytes for layer in layers]
    stack = find_stack(session.network.model)
    groups = 1 if stack is None else len(stack[1])
    together = 0 if least else sum(sizes) // max(1, groups)
    return max(3 * max(sizes), together)


def state_bytes(session: Session, samples: int | None) -> int:
    """Say how many bytes the hidden states of the calibration samples take, about.

    Args:
        session: knows how many positions a sample has.
        samples: as `calibration_samples` takes them.

    Returns:
        The bytes, with as many numbers a position as the first layer has inputs.
    """
    first = session.network.layers[0].weight
    positions = max(session.positions.values(), default=1)
    count = min(samples or 128, session.task.size("calibration"))
    return count * positions * first.shape[1] * first.element_size()


def gram_room(session: Session, memory: float, samples: int | None) -> int:
    """Say how many bytes of Gram matrices may be held at a time.

    Args:
        session: knows what the run may take.
        memory: bound of the method, GiB.
        samples: as `calibration_samples` takes them.

    Returns:
        The bytes.
    """
    bound = int(memory * 2**30)
    return bound if session.room is None else max(0, min(bound, session.room - state_bytes(session, samples)))


def calibration_samples(session: Session, samples: int | None) -> Int[Tensor, " s"]:
    """Choose the calibration samples of a layer-wise method, the same for all of a run.

    Args:
        session: what to work with.
        samples: how many; None: 128, or all there are.

    Returns:
        Their numbers, ascending.

    Raises:
        SecateurError: there are not so many.
    """
    total = session.task.size("calibration")
    if total == 0:
        raise SecateurError("there are no calibration samples: give the task some data.")
    if samples is not None and samples > total:
        raise SecateurError(
            f"samples is {samples}, but there are only {total} calibration samples: lower it, or give more "
            "data."
        )
    order = torch.randperm(total, generator=generator(session.seed, "layer-wise"))
    return order[: samples or 128].sort()[0]


@torch.no_grad()
def write_layers(layers: Iterable[Layer], weights: dict[str, Tensor]) -> None:
    """Write weights of some layers alone to the model.

    Args:
        layers: which.
        weights: by layer.
    """
    for layer in layers:
        layer.write(weights[layer.name])
