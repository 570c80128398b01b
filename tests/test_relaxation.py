"""The relaxation and its bound, against scipy and brute force; gaps and what is done with them."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.solution import Solution, Status
from secateur.core.solver import Found, Solver
from secateur.solvers import BestOf, Default, Exhaustive, Greedy, Polish, Relaxation, Swaps, TabuSearch
from secateur.solvers.arrays import largest
from secateur.testing.problems import brute_force, fisher_problem, indefinite_problem, magnitude, zoo

TIGHT = Relaxation(tolerance=1e-10, steps=10_000)


def scipy_relaxation(problem: BlockProblem) -> float:
    """Minimise over 0 <= x <= 1 with the counts as equations, by an independent method."""
    matrix, linear = problem.matrix.numpy(), problem.linear.double().numpy()
    rows = (problem.groups.numpy() == np.arange(problem.counts.numel())[:, None]).astype(float)
    counts = problem.counts.numpy()
    found = minimize(
        lambda x: linear @ x + 0.5 * x @ matrix @ x,
        problem.incumbent.double().numpy(),
        jac=lambda x: linear + matrix @ x,
        bounds=[(0, 1)] * problem.size,
        constraints={"type": "eq", "fun": lambda x: rows @ x - counts, "jac": lambda x: rows},
        method="SLSQP",
        options={"maxiter": 1000, "ftol": 1e-13},
    )
    return problem.constant + float(found.fun)


@pytest.mark.parametrize("counts", [[10], [3], [2, 7, 1], [1] * 7, [2, 0, 3]])
@pytest.mark.parametrize("samples", [3, 40])
def test_the_relaxation_is_scipys(counts: list[int], samples: int) -> None:
    """The dual bound closes on the minimum that another method finds."""
    for seed in range(3):
        problem = replace(fisher_problem(21, samples, counts, seed), convex=True)
        relaxed = TIGHT.relaxed(problem)
        x = relaxed.point
        assert x.min() >= 0
        assert x.max() <= 1
        for group, count in enumerate(counts):
            assert x[problem.groups.numpy() == group].sum() == pytest.approx(count, abs=1e-9)
        # B is relaxed with 1e-5 of its diagonal added, which lifts and lowers the minimum by as little.
        slack = 1e-5 * float(problem.matrix.diagonal().sum())
        assert relaxed.bound == pytest.approx(scipy_relaxation(problem), abs=1e-6 + slack)


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(2, 11),
    samples=st.integers(1, 12),
    seed=st.integers(0, 10**6),
    tolerance=st.sampled_from([0.5, 1e-3]),
)
def test_the_bound_is_below_the_optimum(n: int, samples: int, seed: int, tolerance: float) -> None:
    """However early the descent ends, and whatever sign the extra diagonal has."""
    generator = torch.Generator().manual_seed(seed)
    base = fisher_problem(n, samples, [n // 2], seed)
    factors = torch.randn(n, samples, generator=generator, dtype=torch.float64)
    own = torch.randn(n, generator=generator, dtype=torch.float64)
    for problem in (base, replace(base, dense=None, factors=factors, diagonal=own)):
        bound = Relaxation(tolerance).lower_bound(problem)
        assert bound is not None
        assert bound <= brute_force(problem)[1] + 1e-12 * magnitude(problem)


def test_a_diagonal_moved_into_l_tightens_the_bound() -> None:
    """diag(v) is linear for binaries: the bound by factors is above that of the same matrix given dense."""
    generator = torch.Generator().manual_seed(0)
    factors = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    own = torch.rand(12, generator=generator, dtype=torch.float64)
    by_factors = replace(fisher_problem(12, 3, [6]), dense=None, factors=factors, diagonal=own)
    dense = replace(by_factors, dense=by_factors.matrix.clone(), factors=None, diagonal=None)
    loose, tight = TIGHT.lower_bound(dense), TIGHT.lower_bound(by_factors)
    assert loose is not None
    assert tight is not None
    assert loose < tight - 0.01 * abs(loose)


def test_no_bound_without_convexity() -> None:
    """An indefinite B is found out, and a promise is believed."""
    problem = indefinite_problem(12, [6])
    assert problem.convexifier is None
    assert Relaxation().lower_bound(problem) is None
    assert Swaps().solve(problem).gap is None
    assert replace(fisher_problem(12, 3, [6]), convex=False).convexifier is None
    assert replace(problem, convex=True).convexifier is not None
    assert zoo()["zero rows"].convexifier is None
    assert zoo()["zero"].convexifier is not None
    low_rank = fisher_problem(60, 3, [6])
    assert low_rank.convexifier is not None
    rough = replace(low_rank, dense=low_rank.matrix.float())  # float32 makes eigenvalues of -1e-7
    assert rough.convexifier is not None


def test_rounding_takes_the_largest_of_each_group() -> None:
    """Ties go by position."""
    values, groups = np.array([0.2, 0.9, 0.9, 0.5, 0.5, 0.5]), np.array([0, 0, 0, 1, 1, 1])
    chosen = largest(values, groups, np.array([1, 2]))
    assert chosen.tolist() == [False, True, False, True, True, False]


def test_the_relaxation_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the problem is posed from another incumbent."""
    calls = []
    dense = Relaxation._dense
    monkeypatch.setattr(Relaxation, "_dense", lambda self, problem: calls.append(1) or dense(self, problem))
    problem = fisher_problem(30, 6, [15])
    solution = Default().solve(problem)
    Swaps().solve(problem.restarted(solution.assignment))
    assert len(calls) == 1


def test_the_gap_is_a_share_of_what_can_be_gained() -> None:
    """It depends neither on the unit nor on the constant."""
    problem = fisher_problem(40, 30, [20])
    plain = Greedy().solve(problem)
    other = Greedy().solve(
        replace(problem, constant=7.0, linear=9 * problem.linear, dense=9 * problem.matrix)
    )
    assert plain.gap is not None
    assert 0 < plain.gap < 1
    assert other.gap == pytest.approx(plain.gap, rel=1e-2)
    assert Solution(plain.assignment, 1.0, Status.FEASIBLE, 0, "x", bound=1.0, before=1.0).gap == 0.0
    assert Solution(plain.assignment, 1.0, Status.FEASIBLE, 0, "x", bound=0.0, before=2.0).gap == 0.5
    assert Solution(plain.assignment, 1.0, Status.FEASIBLE, 0, "x", before=2.0).gap is None


def test_meeting_the_bound_is_a_proof() -> None:
    """Without interactions the relaxation is exact, and any solver that finds the optimum has proven it."""
    base = fisher_problem(30, 6, [10, 5])
    linear = replace(base, dense=0 * base.matrix)
    assert Swaps().solve(linear).status is Status.OPTIMAL
    assert Swaps().solve(linear, certify=False).status is Status.LOCAL_OPTIMUM
    assert Swaps(max_swaps=1).solve(linear).status is Status.FEASIBLE


@dataclass(frozen=True)
class Forbidden(Solver):
    """A solver that must not be run."""

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Fail."""
        raise AssertionError("this was to be spared")


def test_a_small_gap_spares_the_rest() -> None:
    """Polish and BestOf stop where the bound leaves little to gain, and go on where it leaves more."""
    problem = replace(fisher_problem(60, 2, [30]), convex=True)  # of rank 2: the relaxation is nearly exact
    near = Polish(Relaxation()).solve(problem)
    assert near.gap is not None
    assert near.gap < 0.1
    assert Polish(Polish(Relaxation()), Forbidden(), gap=0.1).solve(problem).value == near.value
    assert BestOf((Polish(Relaxation()), Forbidden()), gap=0.1).solve(problem).value == near.value
    with pytest.raises(AssertionError, match="spared"):
        Polish(Polish(Relaxation()), Forbidden(), gap=near.gap / 2).solve(problem)
    with pytest.raises(AssertionError, match="spared"):
        BestOf((Polish(Relaxation()), Forbidden())).solve(problem)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Relaxation(tolerance=-1.0), "tolerance of at least 0"),
        (lambda: Relaxation(steps=0), "at least 1 step"),
        (lambda: Polish(Greedy(), gap=2.0), "gap between 0 and 1"),
        (lambda: BestOf((Greedy(),), gap=-0.1), "gap between 0 and 1"),
        (lambda: Default(gap=1.5), "gap between 0 and 1"),
        (lambda: Default(iterations=-1), "at least 0 iterations"),
        (lambda: TabuSearch(width=0), "shortlist"),
    ],
)
def test_a_setting_out_of_range_gets_one_sentence(make: object, words: str) -> None:
    """It says what is possible."""
    assert callable(make)
    with pytest.raises(SecateurError, match=words):
        make()


def test_the_default_without_tabu_search_is_a_local_optimum() -> None:
    """And with it never worse."""
    for seed in range(5):
        problem = fisher_problem(80, 40, [8], seed)
        plain, more = Default(iterations=0).solve(problem), Default().solve(problem)
        assert plain.status is Status.LOCAL_OPTIMUM
        assert more.value <= plain.value
        small = fisher_problem(14, 9, [7], seed)
        assert Default().solve(small).value <= Exhaustive().solve(small).value + 1e-9
