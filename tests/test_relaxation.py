"""The relaxation and its bound, against scipy and brute force; gaps and what is done with them."""

import subprocess
import sys
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
from secateur.solvers import (
    BestOf,
    Decomposition,
    Default,
    Exhaustive,
    Greedy,
    Iterated,
    Polish,
    Portfolio,
    Relaxation,
    Swaps,
    TabuSearch,
)
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
    monkeypatch.setattr(Relaxation, "_dense", lambda self, *parts: calls.append(1) or dense(self, *parts))
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


def test_what_a_restarted_problem_computes_is_kept() -> None:
    """Parents and children share it, whoever comes first."""
    problem = replace(fisher_problem(30, 6, [15]))
    child = problem.restarted(~problem.incumbent)
    assert child.matrix is problem.matrix
    assert replace(problem).memory is not problem.memory


def test_a_better_incumbent_asks_for_a_more_exact_relaxation() -> None:
    """The tolerance is a share of what can be gained over the present incumbent."""
    loose = Relaxation(tolerance=0.3)
    for seed in range(5):
        problem = replace(fisher_problem(60, 10, [30], seed), convex=True)
        first = loose.relaxed(problem)
        better = problem.restarted(Polish(Greedy()).solve(problem).assignment)
        second = loose.relaxed(better)
        assert second.is_within(0.3, better.value(better.incumbent))
        assert second.bound is not None
        assert first.bound is not None
        assert second.bound >= first.bound - 1e-9
        assert second.bound <= better.value(better.incumbent)


def test_what_would_be_misread_is_refused() -> None:
    """One sentence each, which says what to do; in a process of its own, without run-time type checks."""
    program = """
import numpy as np, torch
from secateur import BlockProblem, SecateurError
wrong = [
    ({"incumbent": torch.tensor([1, 0, 1])}, "add .bool()"),
    ({"groups": torch.tensor([0, -1, 0])}, "int64"),
    ({"groups": torch.tensor([0.0, 1.0, 0.0])}, "int64"),
    ({"linear": torch.tensor([1, 2, 3])}, "floating-point"),
    ({"linear": np.zeros(3)}, "torch.from_numpy"),
]
for part, words in wrong:
    parts = {"linear": torch.zeros(3), "groups": torch.zeros(3).long(), "incumbent": torch.zeros(3).bool()}
    try:
        BlockProblem(0.0, dense=torch.eye(3), **(parts | part))
    except SecateurError as error:
        assert words in str(error), error
    else:
        raise AssertionError(part)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("factor", [1e307, 1e-300])
def test_scales_beyond_float64_are_refused(factor: float) -> None:
    """Where sums overflow or vanish nothing could be proven."""
    problem = indefinite_problem(12, [6])
    extreme = replace(problem, linear=factor * problem.linear, dense=factor * problem.matrix, constant=0.0)
    with pytest.raises(SecateurError, match="scale the objective"):
        Swaps().solve(extreme)


@dataclass(frozen=True)
class Dear(Solver):
    """A solver whose every call costs money."""

    def warm_up(self, size: int = 2) -> float:
        """Nothing is to be compiled."""
        return 0.0

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Charge."""
        raise AssertionError("a call was paid for")


def test_warming_up_calls_nobody_who_charges() -> None:
    """Wrappers warm their parts up, and do not solve themselves."""
    dear = Dear()
    for wrapped in (
        Polish(dear),
        BestOf((dear,)),
        Iterated(dear),
        Portfolio(9.0, (dear,)),
        Decomposition(dear),
    ):
        wrapped.warm_up(10_000)


def test_the_default_is_compiled_beforehand() -> None:
    """In a new process, after warming up, a hard problem finds every kernel compiled."""
    program = """
from secateur.solvers import Default
from secateur.solvers.kernels import descent, greedy, relaxation, search, tabu
Default().warm_up(5000)
kernels = [descent.descend, greedy.construct, relaxation.relax, relaxation.move_pairs]
kernels += [tabu.tabu, search.improving_swaps]
missing = [kernel.__name__ for kernel in kernels if not kernel.signatures]
assert not missing, missing
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_default_goes_on_for_the_seconds_given() -> None:
    """And is never the worse for it."""
    problem = fisher_problem(80, 40, [8])
    assert Default(seconds=0.05).solve(problem).value <= Default().solve(problem).value
    with pytest.raises(SecateurError, match="seconds above 0"):
        Default(seconds=0.0)
