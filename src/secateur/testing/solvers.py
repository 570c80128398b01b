"""What every solver must do, as tests to inherit.

A package that brings a solver tests it so:

    class TestMySolver(SolverConformance):
        solver = MySolver()
"""

import math
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch

from secateur.core.errors import SecateurError
from secateur.core.problem import LARGE, BlockProblem
from secateur.core.registry import lookup
from secateur.core.solution import Solution, Status
from secateur.core.solver import Solver
from secateur.testing.problems import (
    best_swap_change,
    brute_force,
    factored_problem,
    fisher_problem,
    indefinite_problem,
    magnitude,
    permuted,
    scaled,
    zoo,
)

# Differences below this, relative to the size of the problem, are rounding.
ROUNDING = 1e-11
_zoo = cache(zoo)


def check_solution(problem: BlockProblem, solution: Solution) -> None:
    """Assert all that a solution says, by oracles that do not share the solvers' code.

    Args:
        problem: a small problem.
        solution: what a solver made of it.
    """
    x, unit = solution.assignment, magnitude(problem)
    assert x.dtype == torch.bool
    assert x.shape == problem.incumbent.shape
    for group in range(problem.counts.numel()):
        members = problem.groups == group
        assert x[members].sum() == problem.incumbent[members].sum(), f"the count of group {group} is broken"
    ones = x.double()
    value = problem.constant + float(problem.linear.double() @ ones + 0.5 * ones @ problem.matrix @ ones)
    assert abs(solution.value - value) <= ROUNDING * unit, "the value is not that of the assignment"
    assert solution.before is not None
    assert solution.value <= solution.before, "the answer is worse than the incumbent"
    assert solution.before == problem.value(problem.incumbent), "the incumbent's value is another one"
    assert solution.work >= 0
    _, best = brute_force(problem)
    assert solution.value >= best - ROUNDING * unit
    if solution.status is Status.OPTIMAL:
        assert solution.value <= best + ROUNDING * unit, "what is called optimal is not"
    if solution.bound is not None:
        assert solution.bound <= best + ROUNDING * unit, "the lower bound is above the optimum"
        assert solution.gap is not None
        assert 0 <= solution.gap <= 1
    if solution.status is Status.LOCAL_OPTIMUM:
        assert best_swap_change(problem, x) >= -ROUNDING * unit, "a swap improves a local optimum"
    if solution.status is Status.INCUMBENT:
        assert torch.equal(x, problem.incumbent)


class SolverConformance:
    """The tests; a subclass sets `solver`, and its name begins with Test.

    Attributes:
        solver: the solver under test.
        exact: whether it must find an optimum of every problem in the zoo.
        large: whether it takes problems by factors that are too large for their matrix.
        timed: whether it stops by a clock, so that its work may differ from run to run.
    """

    solver: Solver
    exact: bool = False
    large: bool = True
    timed: bool = False

    @pytest.mark.parametrize("kind", zoo())
    def test_zoo(self, kind: str) -> None:
        """Feasible, true to its word, and never worse than the incumbent on every kind of problem."""
        for seed in range(3):
            problem = replace(_zoo(seed)[kind])  # a copy, so that nothing cached is shared
            solution = self.solver.solve(problem, seed)
            check_solution(problem, solution)
            if self.exact:
                gap = solution.value - brute_force(problem)[1]
                assert gap <= ROUNDING * magnitude(problem)
                assert solution.status is Status.OPTIMAL

    def test_an_optimal_incumbent_stays(self) -> None:
        """Nothing better can be found than an optimum."""
        for seed in range(3):
            for problem in (fisher_problem(10, 4, [5], seed), indefinite_problem(9, [1, 2, 1], seed)):
                best, value = brute_force(problem)
                solution = self.solver.solve(replace(problem, incumbent=best), seed)
                assert torch.equal(solution.assignment, best)
                assert abs(solution.value - value) <= ROUNDING * magnitude(problem)

    def test_same_seed_same_answer(self) -> None:
        """The answer follows from problem and seed, and global random states are left alone."""
        problem = indefinite_problem(14, [4, 3], seed=3)
        torch.manual_seed(0)
        np.random.seed(0)
        first = self.solver.solve(problem, 5)
        torch.manual_seed(1)
        np.random.seed(1)
        states = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
        second = self.solver.solve(replace(problem), 5)
        assert torch.equal(first.assignment, second.assignment)
        assert (first.value, first.status) == (second.value, second.status)
        assert self.timed or first.work == second.work
        assert torch.equal(states[0], torch.get_rng_state())
        assert np.array_equal(states[1], np.random.get_state()[1])  # type: ignore[index]

    def test_the_problem_is_not_changed(self) -> None:
        """Solving writes to none of the problem's tensors."""
        problem = indefinite_problem(12, [3, 3], seed=1)
        before = [t.clone() for t in (problem.linear, problem.matrix, problem.groups, problem.incumbent)]
        self.solver.solve(problem, 0)
        after = (problem.linear, problem.matrix, problem.groups, problem.incumbent)
        assert all(torch.equal(old, new) for old, new in zip(before, after, strict=True))

    def test_the_constant_does_not_matter(self) -> None:
        """Adding a constant shifts the value, and nothing else."""
        problem = fisher_problem(12, 5, [6], seed=2)
        plain = self.solver.solve(problem, 0)
        shifted = self.solver.solve(replace(problem, constant=problem.constant + 64.0), 0)
        assert torch.equal(plain.assignment, shifted.assignment)
        assert abs(shifted.value - plain.value - 64.0) < 1e-12

    @pytest.mark.parametrize("factor", [1e-12, 2.0**-30, 3.0, 1e12])
    def test_the_unit_does_not_matter(self, factor: float) -> None:
        """A positive factor leaves the assignment as it is."""
        for problem in (fisher_problem(12, 5, [6], seed=4), indefinite_problem(12, [3, 3], seed=4)):
            plain = self.solver.solve(problem, 0)
            other = self.solver.solve(scaled(problem, factor), 0)
            assert torch.equal(plain.assignment, other.assignment)

    def test_the_numbering_does_not_matter(self) -> None:
        """With its variables in another order a problem is solved as truly, and as well where exactly."""
        for seed in range(3):
            problem = indefinite_problem(12, [2, 3], seed)
            order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
            other = permuted(problem, order)
            solution = self.solver.solve(other, seed)
            check_solution(other, solution)
            if self.exact:
                plain = self.solver.solve(problem, seed)
                assert abs(solution.value - plain.value) <= ROUNDING * magnitude(problem)

    def test_factors_and_the_matrix_they_make_are_one(self) -> None:
        """The form in which B is given does not matter."""
        generator = torch.Generator().manual_seed(8)
        factors = torch.randn(12, 5, generator=generator, dtype=torch.float64)
        own = torch.randn(12, generator=generator, dtype=torch.float64)
        base = fisher_problem(12, 5, [4], seed=8)
        by_factors = replace(base, dense=None, factors=factors, diagonal=own)
        dense = replace(base, dense=by_factors.matrix.clone())
        one, other = self.solver.solve(by_factors, 3), self.solver.solve(dense, 3)
        check_solution(by_factors, one)
        assert abs(one.value - other.value) <= ROUNDING * magnitude(dense)

    def test_an_asymmetric_matrix_stands_for_its_symmetric_part(self) -> None:
        """Bounds and proofs hold, whichever triangle is looked at."""
        for seed in range(5):
            problem = fisher_problem(8, 4, [4], seed)
            skew = torch.randn(8, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).triu(
                1
            )
            lopsided = replace(problem, dense=problem.matrix.tril() + 3 * skew)
            check_solution(lopsided, self.solver.solve(lopsided, seed))

    def test_convex_problems_get_a_bound(self) -> None:
        """Where B is positive semi-definite the solution comes with a gap, and a true one."""
        for seed in range(3):
            problem = fisher_problem(12, 5, [4], seed)
            solution = self.solver.solve(problem, seed)
            assert solution.bound is not None
            assert solution.gap is not None
            check_solution(problem, solution)

    def test_large_problems(self) -> None:
        """By factors no matrix is formed, or the solver says that it takes smaller problems."""
        for count, size in ((20, 2102), (1, None)):
            problem = factored_problem(LARGE + 104, 3, count, size)
            try:
                solution = self.solver.solve(problem, 0)
            except SecateurError:
                assert not self.large or math.comb(LARGE + 104, count) > 1e6
                continue
            assert "matrix" not in problem.memory
            assert problem.is_feasible(solution.assignment)
            assert solution.value == problem.value(solution.assignment) <= problem.value(problem.incumbent)
            assert solution.bound is not None
            assert solution.bound <= solution.value

    def test_what_is_not_finite_is_refused(self) -> None:
        """A NaN never reaches a solver."""
        problem = fisher_problem(6, 3, [2])
        for part in ("linear", "dense"):
            wrong = getattr(problem, part).clone()
            wrong.view(-1)[2] = float("nan")
            with pytest.raises(SecateurError, match="NaN"):
                self.solver.solve(replace(problem, **{part: wrong}), 0)

    def test_a_matrix_symmetric_up_to_rounding(self) -> None:
        """Asymmetry such as a float32 matrix product leaves makes no descent go astray."""
        problem = fisher_problem(12, 3, [6], seed=6)
        noise = torch.randn(12, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        rough = replace(problem, dense=problem.matrix * (1 + 1e-7 * noise))
        check_solution(rough, self.solver.solve(rough, 0))

    def test_it_is_its_settings(self) -> None:
        """The solver is a registered, frozen dataclass, equal to another of the same settings."""
        assert is_dataclass(self.solver)
        assert lookup("solver", self.solver.part_name) is type(self.solver)
        assert replace(self.solver) == self.solver
        for setting in fields(self.solver):
            with pytest.raises(FrozenInstanceError):
                setattr(self.solver, setting.name, None)
