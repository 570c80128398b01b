"""From what a pass gave to the records of a layer."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.convolution import ConvolutionTape, Use
from secateur.core.inputs import Inputs
from secateur.core.linear import LinearTape
from secateur.core.modes import HALF, widened
from secateur.core.records import Records
from secateur.core.tape import LayerTape


def tape_of(
    given: list[Inputs],
    rows: list[list[Tensor]],
    gradient: Float[Tensor, "o i"] | None,
    shape: tuple[int, int],
    samples: int,
    *,
    moments: bool,
) -> LayerTape:
    """Put together the records of a layer; half precision is recorded in float32.

    Args:
        given: the inputs of each use.
        rows: gradients at the outputs of each draw, for every use; none where no rows are wanted. The list
            is emptied.
        gradient: the mean gradient; None: unknown.
        shape: outputs and inputs of the layer.
        samples: S.
        moments: whether sums over the inputs are wanted.

    Returns:
        The records, or the gradients of all rows where those are fewer numbers.
    """
    if gradient is None:
        gradient = widened(given[0].tensor).new_tensor(torch.nan).expand(shape)
    records = _linear if given[0].patches is None else _convolution
    return records(given, rows, gradient, samples).folded(moments=moments)


def weight_gradient(
    given: Sequence[Inputs], pieces: Sequence[Tensor], weights: Float[Tensor, " s"] | None, samples: int
) -> Float[Tensor, "o i"]:
    """Sum the gradient of a layer's weight over samples, weighted or not, and divide by their number.

    Args:
        given: the inputs of each use.
        pieces: gradients at the outputs of each use.
        weights: of the samples; None: 1.
        samples: S.

    Returns:
        The gradient.
    """
    total: Tensor | None = None
    for inputs, piece in zip(given, pieces, strict=True):
        d = widened(piece)
        if weights is not None:
            d = d.reshape(samples, -1) * weights.to(d.dtype)[:, None]
            d = d.reshape(piece.shape)
        x, patches = widened(inputs.tensor).to(d.dtype), inputs.patches
        if patches is None:
            product = d.reshape(-1, d.shape[-1]).T @ x.reshape(-1, x.shape[-1])
        else:
            product = patches.gradient(patches.padded(x), d)
        total = product if total is None else total.add_(product)
    assert total is not None
    return total.div_(samples)


def _linear(given: list[Inputs], rows: list[list[Tensor]], gradient: Tensor, samples: int) -> Records:
    """Lay the uses of a linear layer side by side, as positions."""
    inputs = _feature_major([[x.tensor for x in given]], samples)[:, 0]
    given.clear()
    return LinearTape(inputs, gradient, _feature_major(rows, samples) if rows else None)


def _convolution(given: list[Inputs], rows: list[list[Tensor]], gradient: Tensor, samples: int) -> Records:
    """Keep the inputs of each use, padded, as they are."""
    uses = []
    for at, inputs in enumerate(given):
        assert inputs.patches is not None
        pieces = [draw[at] for draw in rows]
        laid = torch.stack(pieces) if len(pieces) > 1 else pieces[0][None] if pieces else None
        padded = inputs.patches.padded(widened(inputs.tensor))
        uses.append(Use(inputs.patches, padded, None if laid is None else widened(laid)))
    return ConvolutionTape(gradient, tuple(uses), samples)


def _feature_major(rows: list[list[Tensor]], samples: int) -> Float[Tensor, "f r s t"]:
    """Lay the records [S, ..., features] of some rows and all uses out as [features, rows, S, positions]."""
    first = rows[0][0]
    features = first.shape[-1]
    positions = sum(piece.numel() // (samples * features) for piece in rows[0])
    kind = torch.float32 if first.dtype in HALF else first.dtype
    room = first.new_empty((features, len(rows), samples, positions), dtype=kind)
    for r in range(len(rows)):
        at = 0
        for piece in rows[r]:
            laid = piece.reshape(samples, -1, features).permute(2, 0, 1)
            room[:, r, :, at : at + laid.shape[2]] = laid
            at += laid.shape[2]
        rows[r] = []  # one draw at a time is there twice
    return room
