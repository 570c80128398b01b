"""Exact solvers: proofs against brute force, bounds where time is short, and the parts they stand on."""

import sys
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.solution import Status
from secateur.core.solver import Solver
from secateur.solvers import Exhaustive, Greedy
from secateur.solvers.exact.branch_and_bound import LARGEST, BranchAndBound
from secateur.solvers.exact.convexify import diagonal_shift, moves, quadratic, tangents
from secateur.solvers.exact.highs import Highs
from secateur.solvers.exact.linearised import linearise
from secateur.testing.problems import (
    brute_force,
    fisher_problem,
    indefinite_problem,
    magnitude,
    permuted,
    random_incumbent,
    scaled,
    zoo,
)
from secateur.testing.solvers import ROUNDING, SolverConformance, check_solution

EXACT = [BranchAndBound(), Highs()]


class TestBranchAndBound(SolverConformance):
    solver = BranchAndBound()
    exact = True
    large = False


class TestBranchAndBoundCutShort(SolverConformance):
    solver = BranchAndBound(nodes=2, start=Greedy())
    large = False


class TestHighs(SolverConformance):
    solver = Highs()
    exact = True
    large = False


@st.composite
def problems(draw_from: st.DrawFn) -> BlockProblem:
    """Any small problem: integers, so that ties abound, or Gaussian; any groups, counts, sizes of rows."""
    n = draw_from(st.integers(2, 12))
    groups = torch.tensor(draw_from(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    incumbent = torch.tensor(draw_from(st.lists(st.booleans(), min_size=n, max_size=n)))
    generator = torch.Generator().manual_seed(draw_from(st.integers(0, 10**6)))
    half = torch.randn(n, draw_from(st.integers(1, n)), generator=generator, dtype=torch.float64)
    linear = torch.randn(n, generator=generator, dtype=torch.float64)
    spread = torch.randn(n, generator=generator, dtype=torch.float64).mul(draw_from(st.floats(0, 4))).exp()
    if draw_from(st.booleans()):
        half, linear, spread = half.round(), linear.round(), spread.round()
    matrix = half @ half.T
    if draw_from(st.booleans()):
        matrix = matrix - (linear[:, None] + linear) * 2
    return BlockProblem(0.5, linear * spread, groups, incumbent, dense=matrix * spread * spread[:, None])


@settings(max_examples=80, deadline=None)
@given(problem=problems())
def test_branch_and_bound_proves_any_problem(problem: BlockProblem) -> None:
    """Whatever the problem, the tree is searched to its end, and the answer is an optimum."""
    solution = BranchAndBound(start=Greedy()).solve(problem)
    check_solution(problem, solution)
    assert solution.status is Status.OPTIMAL


@settings(max_examples=50, deadline=None)
@given(problem=problems(), nodes=st.integers(1, 6))
def test_a_search_cut_short_has_a_true_bound(problem: BlockProblem, nodes: int) -> None:
    """However few nodes are looked at, the bound is below the optimum."""
    solution = BranchAndBound(nodes=nodes, start=Greedy()).solve(problem)
    check_solution(problem, solution)
    assert solution.work <= nodes
    assert solution.bound is not None


@settings(max_examples=25, deadline=None)
@given(problem=problems())
def test_highs_is_true_to_its_word(problem: BlockProblem) -> None:
    """Whatever the problem, its bound and its proof hold, to within what it says of itself."""
    solution = Highs(start=Greedy()).solve(problem)
    _, best = brute_force(problem)
    tolerance = 3e-7 * magnitude(problem)
    assert solution.status is Status.OPTIMAL
    assert solution.value <= best + tolerance
    assert solution.bound is not None
    assert solution.bound <= best + tolerance


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    "kind",
    ["low rank", "high rank", "few", "indefinite", "groups", "2 of 4", "without l", "signs", "dead rows"],
)
def test_forty_variables(kind: str, seed: int) -> None:
    """The optimum of 40 variables is proven in a tree of some hundred nodes, not of 10^11."""
    rows, fours = torch.arange(40) // 8, torch.arange(40) // 4
    wild = indefinite_problem(40, [20], seed)
    alive = (torch.arange(40) % 3 > 0).double()
    low = fisher_problem(40, 5, [20], seed)
    problem = {
        "low rank": low,
        "high rank": fisher_problem(40, 80, [20], seed),
        "few": fisher_problem(40, 20, [4], seed),
        "indefinite": wild,
        "groups": fisher_problem(40, 10, [4, 1, 2, 6, 3], seed, rows),
        "2 of 4": fisher_problem(40, 20, [2] * 10, seed, fours),
        "without l": replace(wild, linear=0 * wild.linear, dense=wild.matrix - wild.matrix.diagonal().diag()),
        "signs": replace(wild, linear=wild.linear.sign(), dense=wild.matrix.sign()),
        "dead rows": replace(low, linear=low.linear * alive, dense=low.matrix * alive * alive[:, None]),
    }[kind]
    solution = BranchAndBound(nodes=3000).solve(problem)
    assert solution.status is Status.OPTIMAL
    assert solution.value <= problem.value(problem.incumbent)
    assert problem.is_feasible(solution.assignment)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    other = BranchAndBound().solve(scaled(permuted(problem, order), 1e-9))
    assert other.value == pytest.approx(1e-9 * solution.value, rel=1e-9)


def test_branch_and_bound_is_enumeration() -> None:
    """On 20 variables, with nothing to start from, it finds the one optimum that visits to all find."""
    for seed in range(3):
        problems = (
            indefinite_problem(20, [10], seed),
            indefinite_problem(20, [3, 2, 1, 4], seed),
            fisher_problem(20, 4, [10], seed),
        )
        for problem in problems:
            every = Exhaustive().solve(problem)
            solution = BranchAndBound(start=Greedy()).solve(problem)
            assert torch.equal(solution.assignment, every.assignment)
            assert solution.work < every.work / 5


def test_the_two_agree() -> None:
    """HiGHS and our own tree share the tangents only, and come to the same end."""
    for seed in range(2):
        for problem in (fisher_problem(20, 5, [10], seed), indefinite_problem(18, [3, 3, 3], seed)):
            ours, theirs = (solver.solve(problem) for solver in EXACT)
            assert torch.equal(ours.assignment, theirs.assignment)
            assert theirs.status is Status.OPTIMAL
            assert theirs.bound is not None
            assert theirs.bound == pytest.approx(ours.value, abs=3e-7 * magnitude(problem))


@pytest.mark.parametrize(
    "solver", [BranchAndBound(seconds=1e-9), Highs(seconds=1e-9), BranchAndBound(nodes=50)]
)
def test_without_time_there_is_a_bound(solver: Solver) -> None:
    """Where nothing is proven it is not claimed to be, and the bound is below the optimum."""
    problem = indefinite_problem(40, [20], 2)
    best = BranchAndBound().solve(problem)
    solution = solver.solve(problem)
    assert best.status is Status.OPTIMAL
    assert solution.status is not Status.OPTIMAL
    assert solution.bound is not None
    assert best.value - 20.0 < solution.bound < best.value
    assert solution.value >= best.value - 1e-9


def test_a_gap_ends_highs_early() -> None:
    """With a gap allowed HiGHS stops sooner, and says no more than it knows."""
    problem = indefinite_problem(26, [13], 1)
    best = BranchAndBound().solve(problem)
    solution = Highs(gap=0.5).solve(problem)
    assert solution.bound is not None
    assert solution.bound < best.value
    assert solution.value - solution.bound <= 0.5 * abs(solution.value - problem.constant) + 1e-9
    assert solution.status is not Status.OPTIMAL


def test_more_nodes_never_loosen_the_bound() -> None:
    """The tree is walked in the same way whatever the limit."""
    problem = indefinite_problem(40, [20], 0)
    bounds = [BranchAndBound(nodes=nodes).solve(problem).bound for nodes in (1, 10, 100, 10_000)]
    assert all(bound is not None for bound in bounds)
    assert bounds == sorted(bounds)  # type: ignore[type-var]


@pytest.mark.parametrize("kind", zoo())
def test_shifted_matrices_are_convex_along_the_moves(kind: str) -> None:
    """Z'(B - diag(s)) Z has no negative eigenvalue, and none of the counts changes along Z."""
    problem = zoo(1)[kind]
    if problem.size < 2:
        return
    plain = quadratic(problem)
    basis = moves(plain.groups)
    shift = diagonal_shift(plain.matrix, plain.groups, np.ones(problem.size))
    for group in range(problem.counts.numel()):
        assert np.abs(basis[plain.groups == group].sum(0)).max(initial=0.0) < 1e-12
    least = np.linalg.eigvalsh(basis.T @ (plain.matrix - np.diag(shift)) @ basis).min(initial=np.inf)
    assert least >= -1e-13 * np.abs(plain.matrix).sum()


@pytest.mark.parametrize(
    "weights", [[1, 1, 1, 1, 1, 1, 1, 1], [1, 0, 0, 5, 1, 2, 1, 9], [9, 1, 1, 9, 1, 4, 1, 0]]
)
@pytest.mark.parametrize(
    "groups", [[0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 0, 1, 1, 1, 2, 3], [0, 1, 1, 1, 1, 1, 1, 1]]
)
def test_shifts_stay_small_where_any_would_do(groups: list[int], weights: list[float]) -> None:
    """In groups of one and two some of s is not determined, and uneven weights may have no best s."""
    generator = np.random.default_rng(0)
    for rank in (1, 3, 8):
        half = generator.normal(size=(8, rank))
        matrix = half @ half.T
        shift = diagonal_shift(matrix, np.array(groups), np.array(weights, dtype=np.float64))
        assert np.abs(shift).sum() <= 100 * np.abs(matrix).sum()


def test_no_shift_is_worth_more() -> None:
    """Of all s that make the matrix convex along the moves, none has a larger sum, to some thousandths."""
    generator = np.random.default_rng(0)
    for n in (6, 15):
        half = generator.normal(size=(n, n))
        matrix, groups = half + half.T, np.zeros(n, np.int64)
        shift, basis = diagonal_shift(matrix, groups, np.ones(n)), moves(groups)
        for _ in range(200):
            other = shift + generator.normal(size=n) * np.abs(shift).mean() * 0.3
            other += np.linalg.eigvalsh(basis.T @ (matrix - np.diag(other)) @ basis)[0]
            assert other.sum() <= shift.sum() + 2e-3 * np.abs(shift).sum()


@settings(max_examples=40, deadline=None)
@given(problem=problems(), seed=st.integers(0, 1000))
def test_tangents_are_below_the_objective(problem: BlockProblem, seed: int) -> None:
    """Every tangent and bound holds at every feasible assignment."""
    plain = quadratic(problem)
    generator = torch.Generator().manual_seed(seed)
    for tangent in islice(tangents(plain), 3):
        for _ in range(5):
            pruned = random_incumbent(problem.groups, problem.counts.tolist(), generator)
            value = problem.value(pruned) - problem.constant
            height = tangent.offset + float(tangent.slope @ pruned.double().numpy())
            assert height <= value + ROUNDING * magnitude(problem)
            assert tangent.bound <= value + ROUNDING * magnitude(problem)


@settings(max_examples=40, deadline=None)
@given(problem=problems(), seed=st.integers(0, 1000))
def test_the_program_is_the_problem(problem: BlockProblem, seed: int) -> None:
    """Every feasible assignment obeys every row with its own objective, and with no lower one."""
    plain = quadratic(problem)
    program = linearise(plain, list(islice(tangents(plain), 2)))
    rows = np.repeat(np.arange(program.lower.size), np.diff(program.starts))
    generator = torch.Generator().manual_seed(seed)
    for _ in range(5):
        pruned = random_incumbent(problem.groups, problem.counts.tolist(), generator)
        objective = problem.value(pruned) - problem.constant
        columns = program.extend(pruned.numpy(), objective)
        sums = np.bincount(rows, program.entries * columns[program.columns], program.lower.size)
        # A unit is the mean entry; the largest is at most n^2 + n of them.
        assert (sums >= program.lower - 1e-8).all()
        assert (sums <= program.upper + 1e-8).all()
        columns[-1] -= 1e-3
        sums = np.bincount(rows, program.entries * columns[program.columns], program.lower.size)
        assert (sums > program.upper + 1e-8).any() or (sums < program.lower - 1e-8).any()


@pytest.mark.parametrize("solver", EXACT)
def test_too_many_variables_are_refused(solver: Solver) -> None:
    """One sentence says how many it takes."""
    n = LARGEST + 1
    groups, incumbent = torch.zeros(n, dtype=torch.long), torch.arange(n) < 3
    problem = BlockProblem(0.0, torch.ones(n), groups, incumbent, factors=torch.ones(n, 1))
    with pytest.raises(SecateurError, match=f"at most {LARGEST} variables, not {n}"):
        solver.solve(problem)


def test_beside_or_tools_highs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The two bring libraries that cannot be loaded together; a missing one is named."""
    problem = fisher_problem(6, 2, [3])
    monkeypatch.setitem(sys.modules, "ortools", sys)
    with pytest.raises(SecateurError, match="OR-Tools"):
        Highs().solve(problem)
    monkeypatch.delitem(sys.modules, "ortools")
    monkeypatch.setitem(sys.modules, "highspy", None)
    with pytest.raises(SecateurError, match=r"secateur\[highs\]"):
        Highs().solve(problem)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: BranchAndBound(seconds=0.0),
        lambda: BranchAndBound(seconds=float("nan")),
        lambda: BranchAndBound(nodes=0),
        lambda: Highs(seconds=-1.0),
        lambda: Highs(gap=-0.1),
    ],
)
def test_wrong_settings_are_refused(wrong: type) -> None:
    """One sentence says what the solver needs."""
    with pytest.raises(SecateurError, match="needs"):
        wrong()
