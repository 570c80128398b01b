"""The CPLEX LP format: a quadratic objective, and an equation for each group.

Read by CPLEX, Gurobi, SCIP, HiGHS (which solves it only without the quadratic part, or without
the binaries) and dimod. The variables are x0 ... x(n-1).
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from secateur.core.errors import SecateurError

_NUMBER = r"(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
_NAME = r"[A-Za-z_][A-Za-z0-9_.]*"
_TERM = re.compile(rf"([-+]?)\s*({_NUMBER})?\s*({_NAME})(?:\s*\^\s*(2)|\s*\*\s*({_NAME}))?")
_QUADRATIC = re.compile(r"([-+]?)\s*\[([^\]]*)\]\s*(/\s*2)?")
_CONSTANT = re.compile(rf"([-+]?)\s*({_NUMBER})")
_ROW = re.compile(rf"(?:([\w.]+)\s*:)?([^:=<>]*)(=<|=>|<=|>=|[<>=])\s*([-+]?\s*{_NUMBER})")
_BOUND = re.compile(r"\s*(0(\.0)?\s*<=\s*)?\S+\s*<=\s*1(\.0)?\s*|\s*\S+\s*>=\s*0(\.0)?\s*")
_SECTION = re.compile(
    r"^[ \t]*(minimi[sz]e|minimum|min|maximi[sz]e|maximum|max|subject to|such that|st|s\.t\.|bounds?|"
    r"binary|binaries|bin|generals?|gen|integers?|int|semi-continuous|sos|end)[ \t]*:?[ \t]*$",
    re.IGNORECASE | re.MULTILINE,
)
Array = Shaped[np.ndarray, "..."]
_ON_A_LINE = 5  # terms: below the 255 characters that some readers allow


@dataclass(frozen=True, eq=False)
class LinearProgram:
    """What an LP file holds of a block problem.

    Attributes:
        constant: c.
        linear: l.
        dense: B, symmetric.
        groups: the number of the equation that each variable is in.
        counts: the right-hand sides.
    """

    constant: float
    linear: Float[Tensor, " n"]
    dense: Float[Tensor, "n n"]
    groups: Int[Tensor, " n"]
    counts: Int[Tensor, " g"]


def write(
    linear: Float[Tensor, " n"],
    matrix: Float[Tensor, "n n"],
    groups: Int[Tensor, " n"],
    counts: Int[Tensor, " g"],
) -> Iterator[str]:
    """Write l.x + [x'B x]/2 and the counts.

    Args:
        linear: l.
        matrix: B.
        groups: the group of each variable.
        counts: how many ones each group has.

    Yields:
        Lines.
    """
    n = linear.numel()
    yield f"\\ Secateur block problem: {n} variables, {len(groups.unique())} groups"
    yield "\\ constant, scale and incumbent are in the JSON file beside this one"
    yield "Minimize"
    yield " obj:"
    yield from _lines(_signed(value, f"x{i}") for i, value in enumerate(linear.tolist()))
    both = (matrix + matrix.T).triu(1) + matrix.diagonal().diag()
    if bool(both.any()):
        yield " + ["
        yield from _lines(
            _signed(row[j], f"x{i} ^ 2" if i == j else f"x{i} * x{j}")
            for i, row in enumerate(map(Tensor.tolist, both))
            for j in range(i, n)
            if row[j]
        )
        yield " ] / 2"
    yield "Subject To"
    for group in groups.unique().tolist():
        yield f" group{group}:"
        yield from _lines(f"+ x{i}" for i in torch.nonzero(groups == group).flatten().tolist())
        yield f"  = {int(counts[group])}"
    yield "Binaries"
    yield from _lines(f"x{i}" for i in range(n))
    yield "End"


def _signed(value: float, name: str) -> str:
    """Write a term."""
    return f"{'-' if value < 0 else '+'} {abs(value)!r} {name}"


def _lines(terms: Iterator[str]) -> Iterator[str]:
    """Put a few terms on each line."""
    held: list[str] = []
    for term in terms:
        held.append(term)
        if len(held) == _ON_A_LINE:
            yield "  " + " ".join(held)
            held.clear()
    if held:
        yield "  " + " ".join(held)


def read(text: str) -> LinearProgram:
    """Read a problem of this form, whoever wrote it.

    Args:
        text: the file.

    Returns:
        What it holds.

    Raises:
        SecateurError: it is no LP file, or another kind of problem.
    """
    sections = _sections(re.sub(r"\\.*", "", text))
    for section in ("general", "other"):
        if sections[section].strip():
            raise SecateurError(
                "it has variables that are not binary, and a block problem has binary ones alone."
            )
    for line in sections["bounds"].splitlines():
        if line.strip() and not _BOUND.fullmatch(line):
            raise SecateurError(
                f"its bound '{line.strip()}' says more than that a variable is 0 or 1: leave fixed variables "
                "out of the file."
            )
    names = sections["binary"].split()
    places = {name: at for at, name in enumerate(_ordered(names))}
    sign = -1.0 if sections["maximise"].strip() else 1.0
    constant, linear, dense = _objective(sections["maximise"] or sections["minimise"], places)
    groups, counts = _equations(sections["rows"], places)
    return LinearProgram(
        sign * constant,
        torch.from_numpy(sign * linear),
        torch.from_numpy(sign * dense),
        torch.from_numpy(groups),
        torch.tensor(counts, dtype=torch.int64),
    )


def _sections(text: str) -> dict[str, str]:
    """Divide the file at its keywords."""
    before, *rest = _SECTION.split(text)
    if before.strip() or not rest:
        raise SecateurError("it does not begin with Minimize or Maximize, as an LP file does.")
    kinds = {"min": "minimise", "max": "maximise", "su": "rows", "st": "rows", "s.": "rows", "bo": "bounds"}
    kinds |= {"bi": "binary", "ge": "general", "in": "general", "se": "other", "so": "other", "en": "end"}
    found = dict.fromkeys(kinds.values(), "")
    for keyword, content in zip(rest[::2], rest[1::2], strict=True):
        word = keyword.lower()
        found[kinds.get(word[:3]) or kinds[word[:2]]] += content
    return found


def _ordered(names: Sequence[str]) -> Sequence[str]:
    """Put x0 ... x(n-1) in the order of their numbers, and other names in that of the file."""
    if len(set(names)) < len(names):
        raise SecateurError("its section Binaries names a variable twice.")
    numbered = [f"x{i}" for i in range(len(names))]
    return numbered if set(numbered) == set(names) else names


def _objective(text: str, places: Mapping[str, int]) -> tuple[float, Array, Array]:
    """Read c + l.x + [x'B x]/2: c, l and B."""
    text = re.sub(r"^\s*[\w.]+\s*:", "", text)
    linear, dense = np.zeros(len(places)), np.zeros((len(places), len(places)))
    for sign, inside, half in _QUADRATIC.findall(text):
        weight = (-0.5 if sign == "-" else 0.5) * (1.0 if half else 2.0)
        rows, columns, values, rest = _terms(inside, places)
        if rest.strip() or (columns < 0).any():
            raise SecateurError("there is something in the brackets of its objective that is not quadratic.")
        np.add.at(dense, (rows, columns), weight * values)
        np.add.at(dense, (columns, rows), weight * values)
    at, others, values, rest = _terms(_QUADRATIC.sub(" ", text), places)
    if _CONSTANT.sub("", rest).strip() or (others >= 0).any():
        raise SecateurError("its objective holds something that is neither a term nor a number.")
    np.add.at(linear, at, values)
    constants = [float(f"{sign}{number}") for sign, number in _CONSTANT.findall(rest)]
    return sum(constants, 0.0), linear, dense


def _equations(text: str, places: Mapping[str, int]) -> tuple[Array, list[int]]:
    """Read the counts: each variable's equation, and the right-hand sides."""
    groups, counts = np.full(len(places), -1), []
    for at, (label, left, relation, right) in enumerate(_ROW.findall(text)):
        members, others, values, rest = _terms(left, places)
        count = float(right.replace(" ", ""))
        plain = not rest.strip() and (others < 0).all() and (values == 1).all()
        if relation != "=" or not plain or not 0 <= count <= len(members) or count % 1:
            raise SecateurError(
                f"its constraint '{label or at + 1}' is not of the form x0 + x1 + ... = k: a block problem "
                "has counts alone."
            )
        if (groups[members] >= 0).any() or len(set(members.tolist())) < len(members):
            raise SecateurError(f"its constraint '{label or at + 1}' has a variable that another one has.")
        groups[members] = at
        counts.append(int(count))
    if _ROW.sub("", text).strip() or (groups < 0).any():
        raise SecateurError(
            "not every variable is in a constraint x0 + x1 + ... = k, as in a block problem each must be."
        )
    return groups, counts


def _terms(text: str, places: Mapping[str, int]) -> tuple[Array, Array, Array, str]:
    """Find terms: the place of the variable, that of the other one or -1, the factor, and what is left."""
    found = _TERM.findall(text)
    try:
        first = np.array([places[name] for _, _, name, _, _ in found], dtype=np.int64)
        second = np.array(
            [places[other or name] if other or square else -1 for _, _, name, square, other in found],
            dtype=np.int64,
        )
    except KeyError as error:
        raise SecateurError(f"its variable {error} is not among its Binaries.") from error
    values = np.array([float(f"{sign}{number or 1}") for sign, number, *_ in found], dtype=np.float64)
    return first, second, values, _TERM.sub("", text)
