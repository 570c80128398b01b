"""Save a block problem in a format that other solvers read, and load it again."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.files import replacing
from secateur.core.problem import BlockProblem
from secateur.core.qubo import Penalty, Qubo
from secateur.exchange import lists, lp
from secateur.exchange.arrays import read_npz, write_npz
from secateur.exchange.sidecar import SideCar, beside, check_free, digest

SUFFIXES = (".lp", ".coo", ".ubqp", ".npz")


def save_problem(
    problem: BlockProblem,
    path: str | Path,
    indices: Mapping[str, Int[Tensor, " m"]] | None = None,
    *,
    penalty: Penalty = "auto",
) -> None:
    """Write a problem in the format that the suffix names, and its side-car NAME.json beside it.

    | suffix | what | counts | exact |
    |---|---|---|---|
    | .lp | CPLEX LP: quadratic objective | equations | yes, B made symmetric |
    | .coo | lines "i j value" of x'Qx, minimised; dimod reads it | penalty | to rounding |
    | .ubqp | OR-Library: lines "i j q" from 1, maximised | penalty | to rounding |
    | .npz | NumPy arrays; the only one that keeps factors | arrays | bit for bit |

    The text formats hold coefficients that are divided by a power of two, so that their mean
    size is between 1 and 2: solvers have absolute tolerances. The side-car has that scale.

    Args:
        problem: the problem.
        path: where to; the suffix says in which format.
        indices: the flat positions of the block's weights by layer, as in `Block.indices`.
        penalty: for .coo and .ubqp, as in `BlockProblem.to_qubo`.
    """
    path = check_path(path)
    check_free(path)
    with replacing(path) as temporary:
        car = _write(problem, temporary, path.suffix, indices, penalty)
        # Whatever interrupts this, a file never stands beside the side-car of another one unnoticed.
        _write_lines(beside(path), [car.dumps(path.name, digest(temporary))])


def _write(
    problem: BlockProblem,
    temporary: Path,
    suffix: str,
    indices: Mapping[str, Int[Tensor, " m"]] | None,
    penalty: Penalty,
) -> SideCar:
    """Write the problem file, and say what its side-car holds."""
    if suffix == ".npz":
        with temporary.open("wb") as file:
            write_npz(file, problem)
        return SideCar.of(problem, 1.0, 0.0, None, indices)
    if suffix == ".lp":
        scale = _scale(problem.to_qubo(None))
        car = SideCar.of(problem, scale, problem.constant, None, indices)
        linear, matrix = problem.linear.double().cpu() / scale, problem.matrix.cpu() / scale
        lines = lp.write(linear, matrix, problem.groups.cpu(), problem.counts.cpu())
    else:
        form = problem.to_qubo(penalty)
        scale, downward = _scale(form), suffix == ".coo"
        car = SideCar.of(problem, scale if downward else -scale, form.offset, form.penalty, indices)
        lines = (lists.write_coo if downward else lists.write_ubqp)(form.matrix / scale)
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)
    return car


def load_problem(path: str | Path) -> BlockProblem:
    """Read a problem that `save_problem` wrote, or an .lp file of that form from elsewhere.

    An .lp file without a side-car has the constant that it says, and as its incumbent the first
    variables of each group. What a penalty was folded into comes back with it taken off, and the
    diagonal of B in the linear part.

    Args:
        path: the file.

    Returns:
        The problem.

    Raises:
        SecateurError: the file or its side-car is missing, damaged, or of another problem.
    """
    path = check_path(path)
    if not path.is_file():
        raise SecateurError(f"there is no problem file {path}: check the path.")
    car = SideCar.read(path)
    try:
        problem = _read(path, car)
        if car is not None and car.sha256 != digest(path):
            raise SecateurError(
                f"it is not the file that {beside(path).name} was written with, or was changed or cut off "
                "since: take both from a copy, or write them again."
            )
        return problem
    except SecateurError as error:
        raise SecateurError(f"cannot load {path}: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SecateurError(f"cannot read {path} ({error}): take it from a copy.") from error


def _read(path: Path, car: SideCar | None) -> BlockProblem:
    """Make a problem of a file and its side-car."""
    if path.suffix == ".npz":
        return _agreeing(read_npz(path), car)
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".lp":
        return _from_program(lp.read(text), car)
    if car is None:
        raise SecateurError(
            f"it needs {beside(path).name} beside it, which has the groups, the counts and the scale: "
            "bring both files."
        )
    return _from_form(path.suffix, text, car)


def load_indices(path: str | Path) -> dict[str, Int[Tensor, " m"]] | None:
    """Read which weights the variables of a problem file are.

    Args:
        path: the problem file.

    Returns:
        Flat positions by layer, in the order of the variables; None where nobody said.
    """
    car = SideCar.read(check_path(path))
    return dict(car.indices) if car is not None and car.indices is not None else None


def check_path(path: str | Path) -> Path:
    """Refuse a format that is not known.

    Args:
        path: a problem file, there or not.

    Returns:
        The path.

    Raises:
        SecateurError: its suffix is none of ours.
    """
    path = Path(path)
    if path.suffix not in SUFFIXES:
        raise SecateurError(
            f"a problem file ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}, not '{path.name}'."
        )
    return path


def _scale(form: Qubo) -> float:
    """Give the power of two that brings the mean |Q_ij| between 1 and 2, so that dividing is exact."""
    return 2.0 ** math.floor(math.log2(form.mean_size))


def _write_lines(path: Path, lines: Iterable[str]) -> None:
    """Replace a text file as a whole."""
    with replacing(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.writelines(f"{line}\n" for line in lines)


def _from_program(program: lp.LinearProgram, car: SideCar | None) -> BlockProblem:
    """Make a problem of an LP file and its side-car."""
    if car is None:
        ranks = torch.zeros_like(program.groups)
        order = program.groups.argsort(stable=True)
        sizes = program.groups.bincount(minlength=program.counts.numel())
        ranks[order] = torch.arange(order.numel()) - (sizes.cumsum(0) - sizes)[program.groups[order]]
        first = ranks < program.counts[program.groups]
        return BlockProblem(program.constant, program.linear, program.groups, first, dense=program.dense)
    # Each group of the side-car must be one equation, of the same count.
    same = program.groups.shape == car.groups.shape
    if same:
        pairs = torch.stack([program.groups, car.groups]).unique(dim=1)
        same = pairs.shape[1] == program.counts.numel() == len(car.groups.unique())
        same = same and torch.equal(program.counts[pairs[0]], car.counts[pairs[1]])
    if not same:
        raise SecateurError("its equations are not the groups and counts of its side-car: bring both files.")
    return BlockProblem(
        car.constant,
        car.scale * program.linear,
        car.groups,
        car.incumbent,
        dense=car.scale * program.dense,
        convex=car.convex,
    )


def _from_form(suffix: str, text: str, car: SideCar) -> BlockProblem:
    """Make a problem of a list of entries and its side-car, the penalty taken off."""
    read = lists.read_coo if suffix == ".coo" else lists.read_ubqp
    form = car.scale * read(text, car.groups.numel())
    penalty = car.penalty or 0.0
    together = (car.groups[:, None] == car.groups).triu(1).to(form)
    pairs = form.triu(1) - 2 * penalty * together
    linear = form.diagonal() - penalty * (1 - 2 * car.counts[car.groups].to(form))
    return BlockProblem(car.constant, linear, car.groups, car.incumbent, dense=pairs + pairs.T)


def _agreeing(problem: BlockProblem, car: SideCar | None) -> BlockProblem:
    """See that arrays and side-car are of one problem."""
    if car is not None and not (
        torch.equal(problem.groups, car.groups) and torch.equal(problem.incumbent, car.incumbent)
    ):
        raise SecateurError("it and its side-car are of different problems: bring both files.")
    return problem
