"""Samples from torch's data sets."""

from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset

from secateur.core.errors import SecateurError
from secateur.tasks.division import Division
from secateur.tasks.samples import Labelled, Samples

_ORIGIN = "the data set given"


def read_dataset(dataset: Dataset[Any], evaluation: Dataset[Any] | None, division: Division) -> Samples:
    """Read a torch data set of (input, label) pairs into memory.

    Args:
        dataset: the data set, with a length.
        evaluation: another to evaluate on; None: set a part of the first aside.
        division: of the samples; only those it takes are read.

    Returns:
        The samples; not normalised, since transforms have done what the model needs.
    """
    plan = division.plan(_length(dataset), None if evaluation is None else _length(evaluation), _ORIGIN)
    return Samples(
        _read(dataset, plan.calibration),
        _read(dataset if evaluation is None else evaluation, plan.evaluation),
        normalisation=None,
        disjoint=plan.disjoint and evaluation is not dataset,
        origin=_ORIGIN,
    )


def _length(dataset: Dataset[Any]) -> int:
    """Count the samples of a torch data set."""
    try:
        return len(dataset)  # type: ignore[arg-type]
    except TypeError as error:
        raise SecateurError(
            "the data set given has no length: read it into tensors and use Classification.from_arrays."
        ) from error


def _read(dataset: Dataset[Any], index: Int[Tensor, " n"]) -> Labelled:
    """Read some samples of a torch data set and stack them."""
    inputs: list[Tensor] = []
    labels: list[Any] = []
    for at in index.tolist():
        try:
            x, y = dataset[at]
        except (TypeError, ValueError) as error:
            raise SecateurError(f"sample {at} of {_ORIGIN} is not a pair of an input and a label.") from error
        inputs.append(torch.as_tensor(x))
        labels.append(y.item() if isinstance(y, Tensor) and y.numel() == 1 else y)
        if inputs[-1].shape != inputs[0].shape:
            raise SecateurError(
                f"sample {at} of {_ORIGIN} has the shape {list(inputs[-1].shape)}, the first read "
                f"{list(inputs[0].shape)}: make its transform resize them all to one."
            )
    return Labelled.checked(torch.stack(inputs), labels, _ORIGIN)
