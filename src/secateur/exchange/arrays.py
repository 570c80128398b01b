"""NumPy's .npz: all of a problem, bit for bit."""

from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np
import torch

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem

_PARTS = ("linear", "dense", "factors", "diagonal")


def write_npz(file: BinaryIO, problem: BlockProblem) -> None:
    """Write the parts of a problem as arrays of their names.

    Args:
        file: where to.
        problem: the problem.
    """
    parts = {name: getattr(problem, name) for name in (*_PARTS, "groups", "incumbent")}
    arrays = {name: part.detach().cpu().numpy() for name, part in parts.items() if part is not None}
    arrays["constant"] = np.array(problem.constant)
    if problem.convex is not None:
        arrays["convex"] = np.array(problem.convex)
    np.savez(file, allow_pickle=False, **arrays)


def read_npz(path: Path) -> BlockProblem:
    """Read what `write_npz` wrote.

    Args:
        path: the file.

    Returns:
        The problem.

    Raises:
        SecateurError: it is damaged, or holds something else.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            parts = {name: torch.from_numpy(held[name]) for name in _PARTS if name in held}
            return BlockProblem(
                constant=float(held["constant"]),
                groups=torch.from_numpy(held["groups"]).long(),
                incumbent=torch.from_numpy(held["incumbent"]).bool(),
                convex=bool(held["convex"]) if "convex" in held else None,
                **parts,
            )
    except (OSError, EOFError, ValueError, TypeError, LookupError, BadZipFile) as error:
        raise SecateurError(f"its arrays are not those of a block problem ({error}).") from error
