"""`secateur solve`: a block problem in a file -> an answer."""

import json
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from secateur.cli.blocks import facts, number, problem_rows
from secateur.cli.prune import split_words
from secateur.core.answers import read_answers
from secateur.core.errors import SecateurError
from secateur.core.files import replacing
from secateur.core.problem import BlockProblem
from secateur.core.solution import Solution
from secateur.core.solver import Solver
from secateur.exchange import beside, load_problem
from secateur.recipes.build import register_parts
from secateur.recipes.builder import Text, build_dataclass
from secateur.recipes.describe import describe
from secateur.recipes.overrides import apply
from secateur.solvers import Default


@dataclass(frozen=True)
class Choice:
    """What can be set: the solver, and by their names its settings.

    Attributes:
        solver: the solver.
    """

    solver: Solver = field(default_factory=Default)


def run_solve(
    words: Sequence[str], solver: str | None, seed: int, out: str | None, answer: str | None
) -> int:
    """Solve a problem file, or score an answer to it.

    Args:
        words: the problem file, and settings of the solver as ``--name value``.
        solver: the solver's name; None: the one that pruning uses.
        seed: everything random follows from it.
        out: the answer file to write; None: beside the problem.
        answer: an answer file to score instead.

    Returns:
        The status.

    Raises:
        SecateurError: something typed cannot be used.
    """
    named, typed = split_words(words)
    if len(named) != 1:
        raise SecateurError("name one problem file, such as `secateur solve block.lp`.")
    typed |= {} if solver is None else {"solver": solver}
    if answer is not None and typed:
        raise SecateurError(
            f"--answer scores what {answer} holds, and solves nothing: leave out --{next(iter(typed))}."
        )
    path = Path(named[0]).expanduser()
    target = Path(out).expanduser() if out else path.with_suffix(".answer.json")
    if target.suffix != ".json" or target == beside(path):
        raise SecateurError(
            f"the answer is written as JSON: let --out end in .json, and not be the side-car {beside(path)}."
        )
    chosen = build_solver(typed)
    problem = load_problem(path)
    console = Console(soft_wrap=True)
    if answer is None:
        compiling = chosen.warm_up(problem.size)
        if compiling > 1:
            console.print(f"compiled the solver in {compiling:.1f} s, once on a machine", style="dim")
    begin = time.perf_counter()
    solution = (
        chosen.solve(problem, seed)
        if answer is None
        else Solution.from_file(problem, Path(answer).expanduser())
    )
    seconds = time.perf_counter() - begin
    given = [] if answer is None else _given(problem, Path(answer).expanduser())
    console.print(facts([("problem", path.name), *problem_rows(problem), *given, *_found(solution, seconds)]))
    settings = {"solver": describe(chosen), "seed": seed} if answer is None else {"answer": answer}
    _write(target, path, problem, solution, {**settings, "seconds": round(seconds, 4)})
    console.print(f"\n[bold]{escape(shlex.quote(str(target)))}[/] holds the answer.", highlight=False)
    return 0


def build_solver(typed: Mapping[str, str]) -> Solver:
    """Make the solver that was asked for.

    Args:
        typed: settings by name, ``solver`` among them where it is not the default.

    Returns:
        The solver.
    """
    register_parts()
    overrides = {name: Text(value) for name, value in typed.items()}
    table = apply({}, overrides, lambda content: build_dataclass(Choice, content, ""))
    return build_dataclass(Choice, table, "").solver


def _given(problem: BlockProblem, path: Path) -> list[tuple[str, str]]:
    """Describe an answer before anything is repaired or polished."""
    rows = read_answers(path, problem.size).to(problem.incumbent.device)
    values = [problem.value(row) for row in rows if problem.is_feasible(row)]
    kept = f"{len(values):,} of {len(rows):,} assignments keep the counts"
    return [("as given", f"{kept}; the best of those has {number(min(values))}" if values else kept)]


def _found(solution: Solution, seconds: float) -> list[tuple[str, str]]:
    """Describe a solution."""
    gap = "-" if solution.gap is None else f"{100 * solution.gap:.3g} % of what can be gained"
    return [
        ("found", f"[bold green]{number(solution.value)}[/]"),
        ("lower bound", number(solution.bound)),
        ("gap", gap),
        ("status", str(solution.status)),
        ("work", f"{solution.work:,}"),
        ("solver", escape(solution.solver)),
        ("time", f"{seconds:.3g} s"),
    ]


def _write(
    target: Path, path: Path, problem: BlockProblem, solution: Solution, known: Mapping[str, Any]
) -> None:
    """Write the answer, which `Solution.from_file` and `--answer` read again."""
    content = {
        "problem": path.name,
        "value": solution.value,
        "incumbent": problem.value(problem.incumbent),
        "bound": solution.bound,
        "status": str(solution.status),
        "work": solution.work,
        **known,
        "assignment": solution.assignment.int().tolist(),
    }
    with replacing(target) as temporary:
        text = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in content.items())
        temporary.write_text(f"{{\n{text}\n}}\n", encoding="utf-8")
