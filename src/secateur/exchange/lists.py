"""Binary quadratic forms as lists of "i j value": COO, as dimod reads it, and the OR-Library's."""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from secateur.core.errors import SecateurError


def write_coo(matrix: Float[Tensor, "n n"]) -> Iterator[str]:
    """Write x'Qx as dimod's COO format: variables from 0, to be minimised.

    Numbers are written in full, without exponents, which dimod does not read. The diagonal is
    written whole, so that no variable is lost.

    Args:
        matrix: Q, upper triangular.

    Yields:
        Lines.
    """
    yield "# vartype=BINARY"
    for i, j, value in _entries(matrix, diagonal=True):
        yield f"{i} {j} {np.format_float_positional(value, trim='-')}"


def read_coo(text: str, size: int) -> Float[Tensor, "n n"]:
    """Read what `write_coo` wrote.

    Args:
        text: the file.
        size: n.

    Returns:
        Q, upper triangular.
    """
    return _matrix([line for line in text.splitlines() if not line.lstrip().startswith("#")], size, first=0)


def write_ubqp(matrix: Float[Tensor, "n n"]) -> Iterator[str]:
    """Write the maximisation of -x'Qx in the format of the OR-Library.

    A line "n m", then m lines "i j q", variables from 1: maximise sum_i sum_j q_ij x_i x_j over all
    ordered pairs, q_ij = q_ji being given once. So q_ii = -Q_ii, and q_ij = -Q_ij / 2 beside the
    diagonal. Source: J. E. Beasley 1990, OR-Library, doi:10.1057/jors.1990.166 (problem set bqp).

    Args:
        matrix: Q, upper triangular, to be minimised.

    Yields:
        Lines.
    """
    entries = list(_entries(matrix, diagonal=False))
    yield f"{len(matrix)} {len(entries)}"
    for i, j, value in entries:
        yield f"{i + 1} {j + 1} {-value if i == j else -0.5 * value!r}"


def read_ubqp(text: str, size: int) -> Float[Tensor, "n n"]:
    """Read a form in the format of the OR-Library.

    Args:
        text: the file.
        size: n.

    Returns:
        F, upper triangular: the file's value, which is to be maximised, is x'Fx.

    Raises:
        SecateurError: the first line does not fit.
    """
    head, *lines = text.splitlines() or [""]
    if head.split() != [str(size), str(sum(bool(line.strip()) for line in lines))]:
        raise SecateurError(
            f"its first line '{head.strip()}' does not give {size} variables and its entries."
        )
    matrix = _matrix(lines, size, first=1)
    return matrix + matrix.triu(1)


def _entries(matrix: Float[Tensor, "n n"], diagonal: bool) -> Iterator[tuple[int, int, float]]:
    """List the entries that are not zero, and where asked for the whole diagonal."""
    wanted = matrix != 0
    if diagonal:
        wanted = wanted | torch.eye(len(matrix), dtype=torch.bool)
    rows, columns = wanted.nonzero(as_tuple=True)
    yield from zip(rows.tolist(), columns.tolist(), matrix[rows, columns].tolist(), strict=True)


def _matrix(lines: list[str], size: int, first: int) -> Float[Tensor, "n n"]:
    """Put lines "i j value" into an upper triangular matrix."""
    try:
        cells = np.array(" ".join(lines).split(), dtype=np.float64).reshape(-1, 3)
    except ValueError as error:
        raise SecateurError("its lines are not all 'i j value'.") from error
    places = cells[:, :2] - first
    if ((places < 0) | (places >= size) | (places % 1 != 0)).any():
        raise SecateurError(f"it names a variable that is not among the {size} of its side-car.")
    rows, columns = places.astype(np.int64).T
    matrix = np.zeros((size, size))
    np.add.at(matrix, (np.minimum(rows, columns), np.maximum(rows, columns)), cells[:, 2])
    return torch.from_numpy(matrix)
