"""What a classifier must return: one clear sentence for each fault."""

from typing import Any, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.errors import SecateurError


def as_logits(returned: Any, samples: int, classes: int, origin: str) -> Float[Tensor, "s c"]:
    """Find the logits in what a model returns, and refuse those that no cross-entropy can be computed from.

    Args:
        returned: a tensor, or an object that has one as `.logits`.
        samples: S, how many were passed.
        classes: of the data.
        origin: where the data come from, for messages.

    Returns:
        The logits, [S, C].

    Raises:
        SecateurError: there are none; or they are not one row of at least two a sample, fewer than there are
            classes, NaN or infinite.
    """
    outputs = returned if isinstance(returned, Tensor) else getattr(returned, "logits", None)
    if not isinstance(outputs, Tensor):
        raise SecateurError(
            f"the model returns a {type(returned).__name__}: classification needs a tensor of logits "
            "[samples, classes], or an object that has one as .logits."
        )
    if outputs.dim() != 2 or outputs.shape[0] != samples or outputs.shape[1] < 2:
        raise SecateurError(
            f"the model's outputs have the shape {list(outputs.shape)} for {samples} samples: "
            f"classification needs one row of at least two logits a sample, [{samples}, classes]."
        )
    if outputs.shape[1] < classes:
        raise SecateurError(
            f"labels in {origin} go up to {classes - 1}, but the model has only {outputs.shape[1]} outputs: "
            "is it the right model for these data, and do labels start at 0?"
        )
    if not torch.isfinite(outputs).all():
        bad = int((~torch.isfinite(outputs)).any(1).sum())
        raise SecateurError(
            f"the model's outputs are NaN or infinite for {bad} of {samples} samples: check the weights, and "
            "the normalisation of the inputs."
        )
    return outputs


def refuse_inputs(inputs: Tensor, error: Exception, origin: str) -> NoReturn:
    """Say that a model does not take the inputs; a fault of the device is passed on as it is.

    Args:
        inputs: what it was given.
        error: what it raised.
        origin: where the data come from.

    Raises:
        SecateurError: what to do.
    """
    if isinstance(error, SecateurError | torch.OutOfMemoryError):
        raise error
    said = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    if "CUDA error" in said:
        raise error
    raise SecateurError(
        f"the model cannot be run on {origin}, inputs of shape {list(inputs.shape)} "
        f"({said}): check that data and model belong together, and that the inputs have the shape it "
        "takes (in a recipe, flat = true, channels, channels_last and size change it)."
    ) from error
