"""What layer-wise pruners and refits share: their samples, their memory, and writing a few layers."""

from collections.abc import Iterable

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.layer import Layer
from secateur.core.seeds import generator
from secateur.core.stack import find_stack
from secateur.core.task import Task
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
    largest = 3 * max(layer.gram_bytes for layer in layers)
    groups = None if least else _by_element(session)
    return max([largest, *(sum(layer.gram_bytes for layer in group) for group in groups or [])])


def state_bytes(session: Session, samples: int | None) -> int:
    """Say how many bytes the hidden states of the calibration samples take, about.

    Args:
        session: knows how many numbers a sample gives each layer.
        samples: as `calibration_samples` takes them.

    Returns:
        The bytes, with as many numbers as the first layers of the stack's elements are given; 0 where whole
        passes are made.
    """
    count = min(samples or 128, session.task.size("calibration"))
    groups = _by_element(session)
    firsts = [group[0] for group in groups or [] if group]
    numbers = max((session.inputs.get(x.name, x.shape[1]) * x.parameter.itemsize for x in firsts), default=0)
    return count * numbers


def _by_element(session: Session) -> list[list[Layer]] | None:
    """Group the layers by the elements of the model's stack; None where it has none."""
    stack = find_stack(session.network.model)
    if stack is None:
        return None
    parts = [{id(module) for module in element.modules()} for element in stack[1]]
    return [[x for x in session.network.layers if id(x.modules[0]) in part] for part in parts]


def gram_room(
    session: Session, memory: float, samples: int | None, networks: int = 1, beside: int = 0
) -> int:
    """Say how many bytes of Gram matrices may be held at a time.

    Args:
        session: knows what the run may take.
        memory: bound of the method, GiB.
        samples: as `calibration_samples` takes them.
        networks: of how many the hidden states are held.
        beside: bytes that are needed for what is done with the matrices.

    Returns:
        The bytes.
    """
    bound = int(memory * 2**30)
    if session.room is None:
        return bound
    return max(0, min(bound, session.room - networks * state_bytes(session, samples) - beside))


def check_samples(task: Task, samples: int | None) -> None:
    """Refuse to take more samples than there are.

    Args:
        task: has them.
        samples: how many are wanted; None: 128, or all there are.

    Raises:
        SecateurError: there are not so many, or none.
    """
    total = task.size("calibration")
    if total == 0:
        raise SecateurError("there are no calibration samples: give the task some data.")
    if samples is not None and samples > total:
        raise SecateurError(
            f"samples is {samples}, but there are only {total} calibration samples: lower it, or give more "
            "data."
        )


def calibration_samples(session: Session, samples: int | None) -> Int[Tensor, " s"]:
    """Choose the calibration samples of a layer-wise method, the same for all of a run.

    Args:
        session: what to work with.
        samples: how many; None: 128, or all there are.

    Returns:
        Their numbers, ascending; a `SecateurError` says that there are not so many.
    """
    check_samples(session.task, samples)
    total = session.task.size("calibration")
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
