"""Problems by factors that are too large for their matrix, made small enough for brute force."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secateur.core import problem as problem_module
from secateur.core.problem import LARGE, BlockProblem
from secateur.core.quadratic import QuadraticModel
from secateur.core.seeds import generator
from secateur.core.solution import Solution, Status
from secateur.core.solver import Solver
from secateur.solvers import (
    Annealing,
    Decomposition,
    Default,
    Exhaustive,
    Greedy,
    Iterated,
    Polish,
    Portfolio,
    Relaxation,
    Swaps,
)
from secateur.solvers import portfolio as portfolio_module
from secateur.solvers import relaxation as relaxation_module
from secateur.solvers.iterated import shaken
from secateur.solvers.walk import Walk
from secateur.testing.problems import (
    best_swap_change,
    brute_force,
    factored_problem,
    fisher_problem,
    indefinite_problem,
    magnitude,
)


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every problem by factors take the ways of the large ones."""
    monkeypatch.setattr(problem_module, "LARGE", 1)


def by_factors(n: int, samples: int, count: int, size: int | None = None, seed: int = 0) -> BlockProblem:
    """A problem by factors in float64, with a diagonal of its own of any sign."""
    base = factored_problem(n, samples, count, size, seed)
    own = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert base.factors is not None
    return replace(base, linear=base.linear.double(), factors=base.factors.double(), diagonal=0.3 * own)


def dense(problem: BlockProblem) -> BlockProblem:
    """The same problem with its matrix."""
    return replace(problem, dense=problem.matrix.clone(), factors=None, diagonal=None)


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize(("count", "size"), [(10, None), (4, None), (2, 4), (3, 10), (1, 2)])
def test_swaps_end_where_no_swap_improves(count: int, size: int | None) -> None:
    """Of a working set and of all: the status is true by evaluating every swap."""
    for seed in range(3):
        problem = by_factors(40, 6, count, size, seed)
        for solver in (Swaps(), Polish(Relaxation()), Decomposition(Swaps(), size=6)):
            solution = solver.solve(replace(problem), certify=False)
            assert solution.status is Status.LOCAL_OPTIMUM
            assert best_swap_change(problem, solution.assignment) >= -1e-9
            assert solution.value <= problem.value(problem.incumbent)


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize(("count", "size"), [(10, None), (2, 4), (5, 20)])
def test_the_bound_is_that_of_the_matrix(
    count: int, size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both ways close on the same minimum, whichever part of the large way does the work."""
    for few in (0, 1024):
        monkeypatch.setattr(relaxation_module, "_FEW", few)
        for seed in range(3):
            problem = by_factors(40, 6, count, size, seed)
            tight = Relaxation(tolerance=1e-7, steps=100_000)
            large = tight.relaxed(replace(problem))
            monkeypatch.setattr(problem_module, "LARGE", 1000)
            small = tight.relaxed(replace(problem))
            monkeypatch.setattr(problem_module, "LARGE", 1)
            assert large.bound == pytest.approx(small.bound, rel=1e-4)
            sums = np.bincount(problem.groups.numpy(), large.point)
            assert sums == pytest.approx(problem.counts.numpy(), abs=1e-9)


@pytest.mark.usefixtures("everything_is_large")
def test_the_bound_is_below_the_optimum() -> None:
    """By brute force, at loose and tight tolerances."""
    for seed in range(10):
        problem = by_factors(10, 3, 4, seed=seed)
        for tolerance in (0.5, 1e-4):
            bound = Relaxation(tolerance).lower_bound(replace(problem))
            assert bound is not None
            assert bound <= brute_force(problem)[1] + 1e-11 * magnitude(problem)


@pytest.mark.usefixtures("everything_is_large")
def test_annealing_by_factors_is_annealing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same proposals, judged by the response instead of the fields, end at the same assignment."""
    for seed in range(5):
        problem = by_factors(30, 4, 12, seed=seed)
        by_response = Annealing(restarts=2).search(replace(problem), seed).assignment
        monkeypatch.setattr(problem_module, "LARGE", 1000)
        by_fields = Annealing(restarts=2).search(replace(problem), seed).assignment
        monkeypatch.setattr(problem_module, "LARGE", 1)
        values = [problem.value(found) for found in (by_response, by_fields)]
        # The unit of temperature is estimated from the factors without the diagonal.
        assert values[0] == pytest.approx(values[1], rel=0.05, abs=0.05)


@pytest.mark.usefixtures("everything_is_large")
@pytest.mark.parametrize("start", ["kept", "pruned"])
def test_greedy_in_shares(start: str) -> None:
    """With no more variables to choose than shares it chooses one at a time, as greedy does."""
    for seed in range(4):
        problem = by_factors(30, 4, 12, seed=seed)
        greedy = Greedy(start)  # type: ignore[arg-type]
        assert torch.equal(greedy.search(problem, 0).assignment, greedy.search(dense(problem), 0).assignment)
        groups = by_factors(300, 4, 1, 3, seed)
        assert groups.is_feasible(greedy.search(groups, 0).assignment)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(n=st.integers(2, 24), samples=st.integers(1, 40), groups=st.integers(1, 4), seed=st.integers(0, 10**6))
def test_the_look_through_all_swaps_misses_none(n: int, samples: int, groups: int, seed: int) -> None:
    """It finds improving ones exactly where there are some, dense and by factors."""
    draws = torch.Generator().manual_seed(seed)
    factors = torch.randn(n, samples, generator=draws, dtype=torch.float64)
    problem = BlockProblem(
        0.0,
        torch.randn(n, generator=draws, dtype=torch.float64),
        torch.randint(groups, (n,), generator=draws),
        torch.rand(n, generator=draws) < 0.5,
        factors=factors,
        diagonal=torch.randn(n, generator=draws, dtype=torch.float64),
    )
    for posed in (problem, dense(problem), replace(problem, incumbent=Swaps().solve(problem).assignment)):
        best, walk = best_swap_change(posed, posed.incumbent), Walk.through(posed)
        found = walk.improving(n, walk.fields())
        assert (found.size > 0) == (best < -1e-9)
        if found.size:
            part = walk.pose(found, walk.fields())
            assert best_swap_change(part, part.incumbent) < 0


def test_a_part_of_a_problem_is_that_problem() -> None:
    """Moving in a working set changes the whole objective by what the part says."""
    for problem in (by_factors(30, 5, 3, 6), dense(by_factors(30, 5, 3, 6)), indefinite_problem(30, [4, 9])):
        walk = Walk.through(problem)
        chosen = walk.cheapest(12, walk.fields())
        assert chosen.size == 12
        part = walk.pose(chosen, walk.fields())
        assert part.value(part.incumbent) == pytest.approx(0, abs=1e-9)
        found = Swaps().solve(part, certify=False)
        walk.move(chosen, found.assignment.double().numpy())
        after = torch.from_numpy(walk.x > 0.5)
        assert problem.is_feasible(after)
        change = problem.value(after) - problem.value(problem.incumbent)
        assert change == pytest.approx(found.value, abs=1e-9)
        assert walk.fields() == pytest.approx(Walk.through(replace(problem, incumbent=after)).fields())


def test_decomposition_with_an_exact_solver_is_better_than_swaps() -> None:
    """Working sets of ten, each solved by enumeration, leave local optima of single swaps."""
    better = 0
    for seed in range(10):
        problem = fisher_problem(40, 8, [20], seed)
        swaps = Swaps().solve(problem)
        exact = Decomposition(Exhaustive(), size=10).solve(problem)
        assert exact.status is Status.LOCAL_OPTIMUM
        better += exact.value < swaps.value - 1e-9
    assert better >= 5
    assert Decomposition(Swaps(), rounds=1).solve(problem).status is Status.FEASIBLE


def test_no_matrix_is_formed_above_the_limit() -> None:
    """Of the default, and of what it is made of; the gap is known."""
    problem = factored_problem(LARGE + 4, 4, 1025, 2050)
    for solver, gap in ((Default(iterations=5), 0.05), (Annealing(restarts=1, factor=2.0), 0.5)):
        solution = solver.solve(problem)
        assert solution.gap is not None
        assert solution.gap < gap
        assert "matrix" not in problem.memory


def test_a_large_block_is_posed_by_factors() -> None:
    """Its value at the incumbent is 0, as that of a small one."""
    draws = torch.Generator().manual_seed(0)
    n = LARGE + 2
    weights, pruned = torch.randn(n, generator=draws), torch.rand(n, generator=draws) < 0.5
    model = QuadraticModel(torch.randn(n, generator=draws), factors=torch.randn(n, 3, generator=draws) / 10)
    problem = model.problem(weights, pruned, torch.zeros(n, dtype=torch.long), 0.6, 1e-3)
    assert problem.dense is None
    assert problem.value(pruned) == pytest.approx(0, abs=1e-8 * n)
    flipped = pruned.clone()
    flipped[:10] = ~flipped[:10]
    delta = weights * (pruned.float() - flipped.float())
    # d'Hd/2 + a g.d + r |d|^2
    wanted = 0.5 * float((delta.double() @ model.factors.double()).square().sum())  # type: ignore[union-attr]
    wanted += 0.6 * float(model.gradient.double() @ delta.double()) + 1e-3 * float(
        delta.double().square().sum()
    )
    assert problem.value(flipped) == pytest.approx(wanted, rel=1e-5)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(2, 40), groups=st.integers(1, 5), seed=st.integers(0, 10**6), strength=st.floats(0.01, 1.0)
)
def test_shaking_keeps_the_counts(n: int, groups: int, seed: int, strength: float) -> None:
    """And makes as many swaps as asked for, or as there are."""
    draws = torch.Generator().manual_seed(seed)
    problem = BlockProblem(
        0.0, torch.zeros(n), torch.randint(groups, (n,), generator=draws),
        torch.rand(n, generator=draws) < 0.5, dense=torch.zeros(n, n),
    )  # fmt: skip
    after = shaken(problem, problem.incumbent, strength, generator(seed, "test", 0))
    assert problem.is_feasible(after)
    total = problem.counts.numel()
    sides = [
        problem.groups[side].bincount(minlength=total) for side in (problem.incumbent, ~problem.incumbent)
    ]
    possible = int(torch.minimum(*sides).sum())
    assert int((after ^ problem.incumbent).sum()) == 2 * min(possible, max(1, round(strength * n)))


def test_iterated_search_leaves_local_optima() -> None:
    """Shaken starts find what one descent does not, and more starts no less."""
    once = again = 0.0
    for seed in range(5):
        problem = fisher_problem(80, 10, [40], seed)
        once += Swaps().solve(problem).value
        again += Iterated(Swaps(), rounds=10, strength=0.05).solve(problem).value
    assert again < once - 1e-6


def test_a_portfolio_ends_in_time_and_with_a_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock of its own: no run is begun for which the time left is too short."""
    now = itertools.count(step=0.125)
    hard = fisher_problem(120, 60, [60])
    portfolio = Portfolio(4.0)
    portfolio.warm_up()
    runs: list[float] = []
    solve = Solver.solve

    def counted(self: Solver, problem: BlockProblem, seed: int = 0, *, certify: bool = True) -> Solution:
        if self in portfolio.solvers and problem.size == hard.size:
            runs.append(next(now))
        return solve(self, problem, seed, certify=certify)

    monkeypatch.setattr(portfolio_module.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(Solver, "solve", counted)
    solution = portfolio.solve(hard)
    assert len(runs) > len(portfolio.solvers)
    assert runs[-1] - runs[0] <= 4.0
    assert solution.value <= Polish(Relaxation()).solve(hard).value + 1e-9
    easy, begun = replace(hard, dense=0 * hard.matrix), len(runs)
    assert portfolio.solve(easy).status is Status.OPTIMAL
    assert len(runs) == begun + 1


def test_warming_up_solves_something() -> None:
    """It says how long it took, and does not touch anything."""
    assert Default().warm_up() > 0
    assert Default().warm_up(LARGE + 1) > 0
