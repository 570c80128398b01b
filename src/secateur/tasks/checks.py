"""What data must be before anything is computed from them: one clear sentence for each fault."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from secateur.core.errors import SecateurError


def as_inputs(values: Any, origin: str) -> Shaped[Tensor, "s ..."]:
    """Turn inputs into a tensor whose first dimension counts samples, or say what is wrong.

    Args:
        values: a tensor, an array or nested lists; bytes (uint8) stay bytes.
        origin: where they come from, for the message, such as ``"'data.npz'"``.

    Returns:
        The tensor, on the device the values are on.

    Raises:
        SecateurError: the inputs are not numbers, there are none, or some are NaN or infinite.
    """
    tensor = _tensor(values, f"the inputs in {origin}", "numbers")
    if tensor.dim() == 0 or tensor.shape[0] == 0:
        raise SecateurError(f"there are no samples in {origin}: check that it is the file you mean.")
    if tensor.numel() == 0:
        raise SecateurError(
            f"the inputs in {origin} have the shape {_shape(tensor)}, so they hold no numbers."
        )
    if tensor.is_complex():
        raise SecateurError(f"the inputs in {origin} are complex: give real numbers.")
    if tensor.is_floating_point():
        good = torch.isfinite(tensor).flatten(1).all(1) if tensor.dim() > 1 else torch.isfinite(tensor)
        if not good.all():
            bad = (~good).nonzero().flatten()
            raise SecateurError(
                f"the inputs in {origin} are NaN or infinite in {bad.numel()} of {good.numel()} samples "
                f"(the first is sample {int(bad[0])}): remove or mend those samples."
            )
    return tensor


def as_labels(values: Any, origin: str) -> Int[Tensor, " s"]:
    """Turn labels into whole numbers from 0, one a sample, or say what is wrong.

    Args:
        values: a tensor, an array or a list.
        origin: where they come from, for the message.

    Returns:
        The labels, int64.

    Raises:
        SecateurError: the labels are words, fractions, negative, or more than one a sample.
    """
    tensor = _tensor(values, f"the labels in {origin}", "whole numbers from 0, one a class")
    if tensor.dim() != 1:
        cure = (
            "labels.argmax(1) turns one-hot rows into them"
            if _one_hot(tensor)
            else "labels.reshape(-1) may do"
        )
        raise SecateurError(
            f"the labels in {origin} have the shape {_shape(tensor)}, but one whole number a sample "
            f"is needed: {cure}."
        )
    if tensor.is_complex() or (tensor.is_floating_point() and not torch.equal(tensor, tensor.round())):
        raise SecateurError(
            f"the labels in {origin} are not whole numbers: classification needs the number of the class, "
            "from 0, as the label of each sample."
        )
    labels = tensor.to(torch.int64)
    if labels.numel() and int(labels.min()) < 0:
        first = int((labels < 0).nonzero()[0])
        raise SecateurError(
            f"the labels in {origin} go down to {int(labels.min())} (first at sample {first}): "
            "number the classes from 0 and remove samples without a label."
        )
    return labels


def check_lengths(inputs: Tensor, labels: Tensor, origin: str) -> None:
    """Refuse inputs and labels that do not belong together.

    Args:
        inputs: one row a sample.
        labels: one number a sample.
        origin: where they come from, for the message.

    Raises:
        SecateurError: there are more of one than of the other.
    """
    if inputs.shape[0] != labels.shape[0]:
        raise SecateurError(
            f"{origin} has {inputs.shape[0]} inputs but {labels.shape[0]} labels: "
            "give one label for each input, in the same order."
        )


def _tensor(values: Any, what: str, wanted: str) -> Tensor:
    """Convert, without copying where that can be; refuse what is not numbers."""
    if isinstance(values, Tensor):
        return values.detach()
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise SecateurError(
            f"{what} differ in shape from sample to sample: give them all one shape."
        ) from error
    if array.dtype.kind not in "biufc":
        shown = f", such as {array.reshape(-1)[0]!r}" if array.size else ""
        raise SecateurError(
            f"{what} are of the type {array.dtype}{shown}, but {wanted} are needed: "
            "numpy.unique(values, return_inverse=True)[1] turns words into numbers."
        )
    # Torch knows no unsigned integers beyond bytes in arithmetic, and no foreign byte order.
    if array.dtype.kind == "u" and array.dtype.itemsize > 1:
        array = array.astype(np.int64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    # A read-only or reversed array cannot be shared with torch.
    return torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy())


def _one_hot(tensor: Tensor) -> bool:
    """Say whether the rows look like one-hot vectors."""
    return tensor.dim() == 2 and tensor.shape[1] > 1 and bool((tensor.sum(1) == 1).all())


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))
