"""What stacks are made of: padding, pieces of bounded size, and a survey of many matrices."""

from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from secateur.core.problem import ROUNDINGS

# No temporary has more numbers than this: 256 MB in float64.
ELEMENTS = 2**25
EPS = torch.finfo(torch.float64).eps


def pieces_of(count: int, size: int) -> Iterator[slice]:
    """Cut a number of things into pieces that bound the size of temporaries.

    Args:
        count: how many things.
        size: numbers for each in a temporary.

    Yields:
        Successive slices.
    """
    step = max(1, ELEMENTS // max(1, size))
    for start in range(0, count, step):
        yield slice(start, min(count, start + step))


def padded(vectors: list[Tensor], n: int, fill: float) -> Tensor:
    """Stack vectors, or matrices, of different first dimensions.

    Args:
        vectors: at least one.
        n: the dimension wanted, at least the largest.
        fill: what the shorter ones are filled up with.

    Returns:
        The stack, in which vectors are numbered by the first dimension.
    """
    stacked = pad_sequence(vectors, batch_first=True, padding_value=fill)
    room = stacked.new_full((stacked.shape[0], n - stacked.shape[1], *stacked.shape[2:]), fill)
    return torch.cat([stacked, room], 1) if room.numel() else stacked


def symmetrise(matrices: Float[Tensor, "b n n"]) -> Bool[Tensor, " b"]:
    """Average each matrix and its transpose in place.

    Args:
        matrices: symmetric up to rounding; changed.

    Returns:
        Where that did not round to less than float64.
    """
    exact = []
    for part in pieces_of(matrices.shape[0], matrices[0].numel()):
        matrix = matrices[part]
        symmetric = (matrix == matrix.mT).flatten(1).all(1)
        exact.append(symmetric | (matrix.dtype == torch.float64))
        # Products are symmetric up to rounding only, which can make a descent go round in circles.
        if not bool(symmetric.all()):
            matrices[part] = 0.5 * matrix + 0.5 * matrix.mT
    return torch.cat(exact)


def survey_rows(
    matrices: Float[Tensor, "b n n"],
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"], Float[Tensor, "b n"]]:
    """Take the diagonal of each B, and bound its rows.

    Args:
        matrices: B.

    Returns:
        The diagonal, the largest other entry of each row, and the sum of its |entries|.
    """
    diagonal = matrices.diagonal(dim1=1, dim2=2)
    kept = diagonal.clone()
    weight = torch.linalg.vector_norm(matrices, ord=1, dim=2)
    diagonal.fill_(-torch.inf)
    peak = matrices.amax(2)
    diagonal.copy_(kept)
    return kept.double(), peak.double(), weight.double()


def survey_factors(
    factors: Float[Tensor, "b n s"],
) -> tuple[Float[Tensor, "b n"], Float[Tensor, "b n"], Float[Tensor, "b n"]]:
    """Take the diagonal of each U U', and bound its rows, as |u_i.u_j| <= |u_i| |u_j|.

    Args:
        factors: U.

    Returns:
        As `survey_rows`, or more than that.
    """
    norms = torch.linalg.vector_norm(factors, dim=2, dtype=torch.float64)
    above = (1 + ROUNDINGS * EPS) * norms
    return norms.square(), above * above.amax(1, keepdim=True), above * above.sum(1, keepdim=True)
