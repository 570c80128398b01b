"""Block solvers side by side: the gap to the best known value, and seconds, on one core.

    python benchmarks/solvers.py [small | large | exact | compile | batched | all] [--seeds N] [--write]

small: synthetic Fisher problems (`secateur.testing.problems.fisher_problem`, n/4 samples) of 64 to 2,048
variables, a half and a tenth of them pruned, and blocks of the Garment Classifier where
SECATEUR_ASSETS names the data. The gap is (value - best) / (incumbent - best), best being the
best value that any solver of the table found. large: 100,000 variables by factors, each case in a
process of its own, whose peak memory is read. exact: proofs of optimality. compile: what numba takes
once. batched: many blocks at once, on a GPU where there is one. All solvers of a problem run one
after the other in one process; a time is the shortest of three for those under a second. --write
replaces the tables of docs/solvers.md.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from common import ROOT, refresh, table
from threadpoolctl import threadpool_limits

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import register
from secateur.core.solution import Solution, Status
from secateur.core.solver import Found, Solver
from secateur.solvers import (
    Annealing,
    Batched,
    BranchAndBound,
    Default,
    DimodSolver,
    Exhaustive,
    Greedy,
    Highs,
    Iterated,
    Polish,
    Portfolio,
    Relaxation,
    Swaps,
    TabuSearch,
)
from secateur.testing.problems import factored_problem, fisher_problem, indefinite_problem

PAGE = ROOT / "docs" / "solvers.md"
SHORT = 1.0


@register("solver", "benchmark-scipy")
@dataclass(frozen=True)
class Scipy(Solver):
    """The relaxation by scipy, rounded, and then our swap descent."""

    method: str = "SLSQP"
    limit: int = 256

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Relax over 0 <= x <= 1 with the counts as equations."""
        from scipy.optimize import LinearConstraint, minimize

        matrix, linear = problem.matrix.numpy(), problem.linear.double().numpy()
        groups = problem.groups.numpy()
        rows = (groups == np.arange(problem.counts.numel())[:, None]).astype(float)
        counts = problem.counts.numpy().astype(float)
        if self.method == "SLSQP":
            constraint = {"type": "eq", "fun": lambda x: rows @ x - counts, "jac": lambda x: rows}
        else:
            constraint = LinearConstraint(rows, counts, counts)
        found = minimize(
            lambda x: linear @ x + 0.5 * x @ matrix @ x, (rows / rows.sum(1, keepdims=True)).T @ counts,
            jac=lambda x: linear + matrix @ x, bounds=[(0, 1)] * problem.size, constraints=constraint,
            method=self.method, options={"maxiter": 200},
        )  # fmt: skip
        order = np.lexsort((-found.x, groups))
        place = np.arange(order.size) - np.searchsorted(groups[order], groups[order])
        chosen = np.zeros(order.size, dtype=bool)
        chosen[order] = place < counts[groups[order]]
        start = torch.from_numpy(chosen)
        last = Swaps().solve(replace(problem, incumbent=start), certify=False)
        return Found(last.assignment, Status.FEASIBLE, int(found.nit))


@dataclass(frozen=True)
class Contender:
    """A solver in the table, for problems of at most so many variables."""

    name: str
    solver: Solver
    limit: int = 100_000


def contenders() -> list[Contender]:
    """List the solvers of the small problems."""
    return [
        Contender("default", Default()),
        Contender("relaxation, then swaps", Polish(Relaxation())),
        Contender("greedy, then swaps", Polish(Greedy())),
        Contender("swaps from the incumbent", Swaps()),
        Contender("tabu search, 1,000 iterations", TabuSearch()),
        Contender("annealing, 1 restart, then swaps", Polish(Annealing(restarts=1))),
        Contender("annealing, 10 restarts, as published", Annealing()),
        Contender("iterated tabu search from three starts", Iterated(starts=(Relaxation(), Greedy()))),
        Contender("portfolio, 1 s", Portfolio(1.0)),
        Contender("dwave-samplers annealing, 20 reads, repaired", _ocean("SimulatedAnnealing", 0), 1024),
        Contender("... repaired and polished", _ocean("SimulatedAnnealing", 5), 1024),
        Contender("dwave-samplers tabu, 20 reads, repaired and polished", _ocean("Tabu", 5, 5), 1024),
        Contender(
            "dwave-samplers steepest descent, repaired and polished", _ocean("SteepestDescent", 5), 1024
        ),
        Contender("scipy SLSQP, then our swaps", Scipy(), 256),
        Contender("scipy trust-constr, then our swaps", Scipy("trust-constr"), 256),
    ]


def _ocean(name: str, polished: int, restarts: int | None = None) -> Solver:
    """Name a sampler of dwave-samplers."""
    kind = "Solver" if name == "SteepestDescent" else "Sampler"
    parameters = {} if restarts is None else {"num_restarts": restarts, "timeout": 10_000}
    return DimodSolver(f"dwave.samplers:{name}{kind}", polished=polished, parameters=parameters)


def families(seeds: int) -> Iterator[tuple[str, list[BlockProblem]]]:
    """Make the small problems."""
    for n in (64, 256, 1024, 2048):
        yield (
            f"n = {n:,}",
            [
                replace(fisher_problem(n, n // 4, [k], seed), convex=True)  # being a sum of squares
                for k in (n // 2, n // 10)
                for seed in range(seeds)
            ],
        )
    if "SECATEUR_ASSETS" in os.environ:
        yield "Garment, n = 1,024", real_blocks()


@register("solver", "benchmark-recorder")
@dataclass(frozen=True)
class Recorder(Solver):
    """Keeps the problems it is given, and solves them by default."""

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Keep and solve."""
        RECORDED.append(problem)
        return Default().search(problem, seed)


RECORDED: list[BlockProblem] = []


def real_blocks() -> list[BlockProblem]:
    """Record blocks of three stages of the default method on the Garment Classifier."""
    from secateur import ICBS
    from secateur.recipes import load, run_recipe

    recipe = load("garment", {"run.budget": "3steps"})
    pruner = recipe.pruner
    assert isinstance(pruner, ICBS)
    RECORDED.clear()
    run_recipe(replace(recipe, pruner=replace(pruner, solver=Recorder())))
    return [problem for problem in RECORDED if problem.size == 1024][::4]


def solve(solver: Solver, problem: BlockProblem) -> tuple[Solution, float]:
    """Solve a problem as if it had just arrived; the shortest of three times if they are short."""
    best = float("inf")
    for _ in range(3):
        fresh = replace(problem)  # without what was cached
        begin = time.perf_counter()
        solution = solver.solve(fresh, 0)
        took = time.perf_counter() - begin
        best = min(best, took)
        if took > SHORT:
            break
    return solution, best


def small(seeds: int) -> list[str]:
    """Compare on the small problems: a row a solver, a column a family."""
    cells: dict[str, list[str]] = {contender.name: [] for contender in contenders()}
    titles = []
    for title, problems in families(seeds):
        titles.append(title)
        values: dict[str, list[float]] = {}
        seconds: dict[str, list[float]] = {}
        for problem in problems:
            for contender in contenders():
                if problem.size <= contender.limit:
                    solution, took = solve(contender.solver, problem)
                    values.setdefault(contender.name, []).append(solution.value)
                    seconds.setdefault(contender.name, []).append(took)
        best = [min(each) for each in zip(*values.values(), strict=True)]
        before = [problem.value(problem.incumbent) for problem in problems]
        for name, row in cells.items():
            if name not in values:
                row.append("-")
                continue
            gaps = [100 * (v - b) / (p - b) for v, b, p in zip(values[name], best, before, strict=True)]
            took = 1000 * statistics.mean(seconds[name])
            time_taken = f"{took:,.{0 if took >= 10 else 1}f} ms"
            row.append(f"{statistics.mean(gaps):.2f} ({max(gaps):.2f}), {time_taken}")
        print(title, {name: row[-1] for name, row in cells.items()}, flush=True)
    return table(["gap, % mean (worst), and time", *titles], [[name, *row] for name, row in cells.items()])


LARGE_CASES: dict[str, Callable[[], BlockProblem]] = {
    "one group, half pruned": lambda: factored_problem(100_000, 256, 50_000),
    "one group, a tenth pruned": lambda: factored_problem(100_000, 256, 10_000),
    "a group a row of 100, half pruned": lambda: factored_problem(100_000, 256, 50, 100),
    "two of four": lambda: factored_problem(100_000, 256, 2, 4),
}


def large_case(name: str) -> dict[str, float | str]:
    """Solve one large problem, with the time of each part and the peak memory of the process."""
    solver = Polish(Relaxation())
    solver.warm_up(100_000)
    problem = LARGE_CASES[name]()
    idle = _memory()
    begin = time.perf_counter()
    bound = Relaxation().lower_bound(problem)
    relaxed = time.perf_counter()
    solution = solver.solve(problem)
    end = time.perf_counter()
    assert bound is not None
    assert solution.gap is not None
    assert "matrix" not in problem.memory
    return {
        "relaxation": relaxed - begin, "swaps": end - relaxed, "gap": solution.gap, "status": solution.status,
        "idle": idle, "peak": _memory(),
    }  # fmt: skip


def _memory() -> float:
    """Read the peak memory of this process, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e9 if sys.platform == "darwin" else 1e6)


def large() -> list[str]:
    """Solve the large problems."""
    rows = []
    for name in LARGE_CASES:
        words = [sys.executable, __file__, "--case", name]
        found = json.loads(subprocess.run(words, capture_output=True, text=True, check=True).stdout)
        times = [f"{found['relaxation']:.1f}", f"{found['swaps']:.1f}"]
        memory = [f"{found['peak']:.2f}", f"{found['idle']:.2f}"]
        rows.append([name, *times, f"{100 * found['gap']:.2f}", found["status"], *memory])
        print(rows[-1], flush=True)
    head = ["n = 100,000, S = 256", "relaxation, s", "rounding and swaps, s", "gap to the lower bound, %"]
    return table([*head, "status", "peak memory, GB", "of it before solving"], rows)


def exact(seeds: int) -> list[str]:
    """Prove optima."""
    kinds = {
        "Fisher, S = 5": lambda n, seed: fisher_problem(n, 5, [n // 2], seed),
        "Fisher, S = 20": lambda n, seed: fisher_problem(n, 20, [n // 2], seed),
        "Fisher, S = 80": lambda n, seed: fisher_problem(n, 80, [n // 2], seed),
        "Fisher, S = 20, a tenth pruned": lambda n, seed: fisher_problem(n, 20, [n // 10], seed),
        "two of four, S = 20": lambda n, seed: fisher_problem(
            n, 20, [2] * (n // 4), seed, torch.arange(n) // 4
        ),
        "Gaussian, indefinite": lambda n, seed: indefinite_problem(n, [n // 2], seed),
    }
    solvers: list[tuple[Solver, tuple[int, ...]]] = [
        (Exhaustive(), (24,)),
        (BranchAndBound(), (24, 40)),
        (Highs(), (24, 40)),
    ]
    head = [f"{solver.part_name}, n = {n}" for solver, sizes in solvers for n in sizes]
    rows = []
    for name, make in kinds.items():
        cells = []
        for solver, sizes in solvers:
            for n in sizes:
                solved = [solve(solver, make(n, seed)) for seed in range(seeds)]
                proven = sum(solution.status is Status.OPTIMAL for solution, _ in solved)
                seconds = [took for _, took in solved]
                cells.append(f"{proven} of {seeds}, {statistics.mean(seconds):.2f} ({max(seconds):.2f})")
        rows.append([name, *cells])
        print(rows[-1], flush=True)
    return table(["proven, and seconds mean (longest)", *head], rows)


def batched() -> list[str]:
    """Solve many blocks at once in torch, on a GPU where there is one, and the same ones one by one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    number = 1000 if device == "cuda" else 16
    problems, there = [], []
    for seed in range(number):
        problem = fisher_problem(1024, 256, [512], seed)
        problem = replace(problem, dense=problem.matrix.float(), convex=True)
        moved = {
            part: getattr(problem, part).to(device) for part in ("linear", "groups", "incumbent", "dense")
        }
        problems.append(problem)
        there.append(replace(problem, **moved))
    rows = []
    for name, solver in (
        ("1 start", Batched(restarts=1, dtype="float32")),
        ("4 starts", Batched(dtype="float32")),
    ):
        solver.solve_many(there[:2])
        begin = time.perf_counter()
        found = solver.solve_many(there)
        rows.append([name, device, *_rate(number, time.perf_counter() - begin, found)])
    some = problems[:50]
    begin = time.perf_counter()
    found = [Default().solve(problem) for problem in some]
    rows.append(["default, one by one", "cpu", *_rate(len(some), time.perf_counter() - begin, found)])
    return table(["n = 1,024, k = 512", "device", "blocks", "blocks a second", "mean value"], rows)


def _rate(number: int, seconds: float, found: list[Solution]) -> list[str]:
    """Describe how many problems a second were solved, and how well."""
    mean = statistics.mean(solution.value for solution in found[:16])  # of those that all have solved
    return [f"{number:,}", f"{number / seconds:,.1f}", f"{mean:.2f}"]


def compiling() -> list[str]:
    """Compile the kernels of the default solver in a new process, and load them in the next one."""
    program = (
        "from secateur.solvers import Default; s = Default(); "
        "print(s.warm_up(), s.warm_up(5000), s.warm_up(5000))"
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "NUMBA_CACHE_DIR": folder}
        for name in ("first use, compiled", "next process, from the cache"):
            words = [sys.executable, "-c", program]
            done = subprocess.run(words, capture_output=True, text=True, check=True, env=environment)
            rows.append([name, *(f"{float(word):.2f}" for word in done.stdout.split())])
    return table(["", "small problems, s", "large ones too, s", "again, s"], rows)


def main() -> None:
    """Run what was asked for and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parts = {"small": small, "large": large, "exact": exact, "compile": compiling, "batched": batched}
    parser.add_argument("what", nargs="?", default="all", choices=[*parts, "all"])
    parser.add_argument("--seeds", type=int, default=3, help="problems of each kind")
    parser.add_argument("--write", action="store_true", help="replace the tables of docs/solvers.md")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    threadpool_limits(1)
    if chosen.case:
        print(json.dumps(large_case(chosen.case)))
        return
    for contender in contenders():
        contender.solver.warm_up()
    for name, part in parts.items():
        if chosen.what in (name, "all"):
            lines = part(chosen.seeds) if name in ("small", "exact") else part()
            print("\n".join(lines), flush=True)
            if chosen.write:
                refresh(PAGE, f"solvers.py {name}", lines)


if __name__ == "__main__":
    try:
        main()
    except SecateurError as error:
        sys.exit(f"error: {error}")
