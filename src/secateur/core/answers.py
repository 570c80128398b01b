"""Assignments in the files that other solvers write."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from secateur.core.errors import SecateurError
from secateur.core.extras import need
from secateur.core.names import position
from secateur.core.ocean import EXTRA, read_sampleset

_NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
# "x12 1", as HiGHS, SCIP and Gurobi list solutions, and <variable name="x12" ... value="1"/>, as CPLEX does.
_LISTED = re.compile(rf"^\s*x(\d+)[\s,;=]+({_NUMBER})(?=$|[\s,;])", re.MULTILINE)
_MARKED = re.compile(rf'<variable\b[^>]*\bname="x(\d+)"[^>]*\bvalue="({_NUMBER})"')
# Mixed-integer solvers take a number for whole that is so near to one.
_TOLERANCE = 1e-4


def read_answers(path: str | Path, size: int) -> Bool[Tensor, "m n"]:
    """Read assignments from a file, whoever wrote it.

    JSON: a list of 0 and 1, several lists, ``{"assignment": ...}``, ``{"x0": 1, ...}``, or a
    dimod sample set. NumPy: .npy, or .npz with an array `assignment` or one array only. Text:
    "x12 1" in lines, as HiGHS, SCIP and Gurobi write (what is not listed is 0), or CPLEX's
    XML; rows of 0 and 1, with or without blanks or commas between; CSV with the variables' names
    above. Where a file has a -1, its values are spins, and +1 means 1.

    Args:
        path: the file.
        size: n, how many variables the problem has.

    Returns:
        One assignment a row.

    Raises:
        SecateurError: the file cannot be read, or holds no assignment of n variables.
    """
    path = Path(path)
    if not path.is_file():
        raise SecateurError(f"there is no answer file {path}: check the path.")
    try:
        if path.suffix in (".npy", ".npz"):
            rows = _from_numpy(path)
        else:
            text = path.read_text(encoding="utf-8-sig")  # editors on Windows begin files with a mark
            rows = _from_json(json.loads(text), size) if path.suffix == ".json" else _from_text(text, size)
        return _as_bits(rows, size)
    except SecateurError as error:
        raise SecateurError(f"{path} holds no answer to this problem: {error}") from error
    except (OSError, EOFError, ValueError, TypeError, LookupError, BadZipFile) as error:
        raise SecateurError(
            f"cannot read the answer file {path} ({error}): a JSON list of 0 and 1 is always understood."
        ) from error


def _from_numpy(path: Path) -> Any:
    """Read .npy or .npz."""
    with path.open("rb") as file:
        loaded = np.load(file, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        if "assignment" not in loaded and len(loaded) != 1:
            raise SecateurError("its arrays are several, and none is called 'assignment'.")
        return loaded["assignment" if "assignment" in loaded else next(iter(loaded))]


def _from_json(content: Any, size: int) -> Any:
    """Find the assignments in what a JSON file holds."""
    if isinstance(content, Mapping):
        if content.get("type") == "SampleSet":
            return read_sampleset(need("dimod", EXTRA).SampleSet.from_serializable(content), size).numpy()
        return _from_json(content["assignment"], size) if "assignment" in content else _row(content, size)
    if isinstance(content, list) and all(isinstance(item, Mapping) for item in content):
        return [_row(item, size) for item in content]
    return content


def _from_text(text: str, size: int) -> Any:
    """Find the assignments in a text file."""
    marked = _MARKED.findall(text)
    listed = marked or _LISTED.findall(text.partition("# Dual")[0])  # HiGHS lists prices there
    if listed:
        names = [name for name, _ in listed]
        if len(set(names)) < len(names):
            raise SecateurError(
                "it names a variable twice, so that it is more than one solution: take one out."
            )
        return [_row(dict(listed), size)]
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    if lines and re.search("[a-zA-Z]", lines[0]):
        return _from_table(list(csv.reader(lines)), size)
    rows = [_cells(line, size) for line in lines]
    return list(zip(*rows, strict=True)) if len(rows) == size and all(len(row) == 1 for row in rows) else rows


def _from_table(table: Sequence[Sequence[str]], size: int) -> list[list[str]]:
    """Take the variables' columns out of a table with names above; others, such as energies, are left."""
    columns = {name.strip().removeprefix("x"): at for at, name in enumerate(table[0])}
    missing = [i for i in range(size) if str(i) not in columns]
    if missing:
        raise SecateurError(f"its first line names no variable x{missing[0]}.")
    return [[row[columns[str(i)]] for i in range(size)] for row in table[1:]]


def _cells(line: str, size: int) -> list[str]:
    """Divide a row, also one written without anything between the digits."""
    cells = re.split(r"[\s,;]+", line.strip())
    together = len(cells) == 1 and len(cells[0]) == size and set(cells[0]) <= set("01")
    return list(cells[0]) if together else cells


def _row(values: Mapping[str, Any], size: int) -> np.ndarray:
    """Put named values in their places; what is not named is 0."""
    row = np.zeros(size)
    for name, value in values.items():
        row[position(name, size)] = float(value)
    return row


def _as_bits(rows: Any, size: int) -> Bool[Tensor, "m n"]:
    """Check that values are zeros and ones, n in a row."""
    values = np.atleast_2d(np.asarray(rows, dtype=np.float64))
    if values.ndim != 2 or values.shape[1] != size or len(values) == 0:
        shape = " x ".join(map(str, values.shape))
        raise SecateurError(f"it holds values of shape {shape}, and the problem has {size} variables.")
    if (values == -1).any():
        values = (values + 1) / 2
    strange = ~((np.abs(values) <= _TOLERANCE) | (np.abs(values - 1) <= _TOLERANCE))
    if strange.any():
        row, column = np.argwhere(strange)[0]
        raise SecateurError(
            f"it gives x{column} the value {values[row, column]:g}, which is neither 0 nor 1."
        )
    return torch.from_numpy(values > 0.5)
