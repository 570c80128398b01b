"""The solvers against brute force, naive rewritings of themselves, and the conformance suite."""

import math
from dataclasses import MISSING, dataclass, fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.registry import names, register
from secateur.core.solution import Status
from secateur.core.solver import Found, Solver
from secateur.solvers import (
    Annealing,
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
from secateur.solvers.kernels.enumeration import revolve
from secateur.solvers.kernels.random import draw, draw_below
from secateur.testing.problems import (
    best_swap_change,
    brute_force,
    fisher_problem,
    indefinite_problem,
    magnitude,
    permuted,
    random_incumbent,
    zoo,
)
from secateur.testing.solvers import ROUNDING, SolverConformance, check_solution


class TestExhaustive(SolverConformance):
    solver = Exhaustive()
    exact = True
    large = False


class TestGreedy(SolverConformance):
    solver = Greedy()


class TestGreedyFromPruned(SolverConformance):
    solver = Greedy("pruned")


class TestSwaps(SolverConformance):
    solver = Swaps()


class TestFirstSwaps(SolverConformance):
    solver = Swaps("first")


class TestFewSwaps(SolverConformance):
    solver = Swaps(max_swaps=1)


class TestAnnealing(SolverConformance):
    solver = Annealing(restarts=2)


class TestTabu(SolverConformance):
    solver = TabuSearch(iterations=100, tenure=3)


class TestRelaxation(SolverConformance):
    solver = Relaxation()


class TestDecomposition(SolverConformance):
    solver = Decomposition(Exhaustive(), size=4)


class TestIterated(SolverConformance):
    solver = Iterated(TabuSearch(20), starts=(Relaxation(),), rounds=2)


class TestPortfolio(SolverConformance):
    solver = Portfolio(0.001, (Polish(Relaxation()),))
    timed = True


class TestPolish(SolverConformance):
    solver = Polish(Annealing(restarts=1))


class TestBestOf(SolverConformance):
    solver = BestOf((Annealing(restarts=1), TabuSearch(20)), runs=2)


class TestBestOfWithProof(SolverConformance):
    solver = BestOf((Greedy(), Exhaustive()))
    large = False


class TestDefault(SolverConformance):
    solver = Default()


@st.composite
def problems(draw_from: st.DrawFn) -> BlockProblem:
    """Any small problem: integers, so that ties abound, or Gaussian; any groups and counts."""
    n = draw_from(st.integers(2, 10))
    groups = torch.tensor(draw_from(st.lists(st.integers(0, 2), min_size=n, max_size=n)))
    incumbent = torch.tensor(draw_from(st.lists(st.booleans(), min_size=n, max_size=n)))
    generator = torch.Generator().manual_seed(draw_from(st.integers(0, 10**6)))
    half = torch.randn(n, n, generator=generator, dtype=torch.float64)
    linear = torch.randn(n, generator=generator, dtype=torch.float64)
    if draw_from(st.booleans()):
        half, linear = half.round(), linear.round()
    matrix = half @ half.T if draw_from(st.booleans()) else half + half.T
    return BlockProblem(0.0, linear, groups, incumbent, dense=matrix)


@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_any_problem(problem: BlockProblem) -> None:
    """Every solver is true to its word, and exhaustive search finds the optimum."""
    solvers = (
        Greedy(),
        Greedy("pruned"),
        Swaps(),
        Swaps("first"),
        TabuSearch(30),
        Annealing(1),
        Default(),
    )
    for solver in solvers:
        check_solution(problem, solver.solve(problem, 0))
    exact = Exhaustive().solve(problem)
    check_solution(problem, exact)
    assert exact.status is Status.OPTIMAL
    assert exact.bound == pytest.approx(exact.value, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("counts", [[6], [2], [3, 2], [1, 2, 1, 1]])
def test_exhaustive_is_brute_force(counts: list[int]) -> None:
    """Where the optimum is unique the two agree on every variable, and on how many there are."""
    for seed in range(20):
        problem = indefinite_problem(12, counts, seed)
        solution = Exhaustive().solve(problem)
        best, value = brute_force(problem)
        assert torch.equal(solution.assignment, best)
        assert solution.value == pytest.approx(value, rel=1e-13)
        assert solution.work == math.prod(math.comb(12 // len(counts), k) for k in counts)


def test_exhaustive_does_not_depend_on_the_numbering() -> None:
    """Permuted variables give the permuted assignment."""
    for seed in range(5):
        problem = indefinite_problem(12, [3, 3], seed)
        permutation = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
        plain, other = Exhaustive().solve(problem), Exhaustive().solve(permuted(problem, permutation))
        assert torch.equal(other.assignment, plain.assignment[permutation])
        assert other.value == pytest.approx(plain.value, rel=1e-13)


def test_exhaustive_sees_small_differences_beside_huge_entries() -> None:
    """Rounding left by visits to huge values does not hide which small value is least."""
    huge, rest = 4, torch.arange(10) != 4  # the first kept one, which the walk prunes and restores early
    incumbent = torch.arange(10) < 4
    for seed in range(5):
        problem = indefinite_problem(10, [4], seed)
        matrix = problem.matrix.clone()
        matrix[huge] *= 1e16
        matrix[:, huge] = matrix[huge]
        matrix[huge, huge] = 1e18
        rough = replace(problem, dense=matrix, incumbent=incumbent)
        without = BlockProblem(
            0.5, problem.linear[rest], problem.groups[rest], incumbent[rest], dense=matrix[rest][:, rest]
        )
        assert torch.equal(Exhaustive().solve(rough).assignment[rest], brute_force(without)[0])


def test_exhaustive_refuses_what_would_take_for_ever() -> None:
    """The sentence says how many assignments there are."""
    problem = fisher_problem(200, 5, [100])
    with pytest.raises(SecateurError, match=r"9.05e\+58 feasible assignments.*smaller blocks"):
        Exhaustive().solve(problem)
    with pytest.raises(SecateurError, match="more than the limit 923"):
        Exhaustive(limit=923).solve(fisher_problem(12, 5, [6]))
    assert Exhaustive(limit=924).solve(fisher_problem(12, 5, [6])).work == 924


@pytest.mark.parametrize(("m", "k"), [(1 + k + extra, k) for k in range(1, 6) for extra in range(4)])
def test_the_revolving_door(m: int, k: int) -> None:
    """Each k-subset comes once, by one exchange, and the walk ends where it began."""
    chosen = np.array([*range(k), m])
    seen, wrapped = [], False
    while not wrapped:
        before = set(chosen[:k].tolist())
        seen.append(frozenset(before))
        leaves, enters, wrapped = revolve(chosen, k)
        assert before - {leaves} | {enters} == set(chosen[:k].tolist()) != before
        assert sorted(chosen[:k]) == list(chosen[:k])
    assert len(seen) == len(set(seen)) == math.comb(m, k)
    assert list(chosen) == [*range(k), m]


def naive_greedy(problem: BlockProblem) -> torch.Tensor:
    """Prune one variable at a time, each candidate evaluated by the whole objective."""
    x = torch.zeros(problem.size, dtype=torch.bool)
    while x.sum() < problem.counts.sum():
        values = {}
        for i in torch.nonzero(~x).flatten().tolist():
            group = problem.groups[i]
            if x[problem.groups == group].sum() < problem.counts[group]:
                trial = x.clone()
                trial[i] = True
                values[i] = problem.value(trial)
        x[min(values, key=lambda i: values[i])] = True
    return x


@pytest.mark.parametrize("counts", [[10], [3, 0, 4], [2] * 10])
def test_greedy_is_greedy(counts: list[int]) -> None:
    """The fields give what evaluating every choice gives, from either end."""
    for seed in range(4):
        problem = indefinite_problem(30, counts, seed)
        assert torch.equal(Greedy().search(problem, 0).assignment, naive_greedy(problem))
        # From the other end it is greedy on the problem in y = 1 - x.
        mirrored = replace(
            problem, incumbent=~problem.incumbent, linear=-problem.linear - problem.matrix.sum(1)
        )
        assert torch.equal(Greedy("pruned").search(problem, 0).assignment, ~naive_greedy(mirrored))


@pytest.mark.parametrize("make", [fisher_problem, indefinite_problem])
@pytest.mark.parametrize("counts", [[20], [4], [5, 1, 9], [1] * 20])
def test_every_swap_is_the_best(make: object, counts: list[int]) -> None:
    """The cut-off by row maxima misses no better pair, at any point of a descent."""
    problem = (
        fisher_problem(40, 8, counts, 7) if make is fisher_problem else indefinite_problem(40, counts, 7)
    )
    for _ in range(100):
        best, solution = best_swap_change(problem, problem.incumbent), Swaps(max_swaps=1).solve(problem)
        if torch.equal(solution.assignment, problem.incumbent):
            assert solution.status is Status.LOCAL_OPTIMUM
            assert best >= -ROUNDING * magnitude(problem)
            break
        assert solution.value - problem.value(problem.incumbent) == pytest.approx(best, rel=1e-9)
        problem = replace(problem, incumbent=solution.assignment)
    else:
        pytest.fail("the descent does not end")
    assert torch.equal(Swaps().solve(problem).assignment, problem.incumbent)


@pytest.mark.parametrize("rule", ["best", "first"])
def test_a_large_descent_ends_in_a_local_optimum(rule: str) -> None:
    """At a size where fields are refreshed and float32 noise makes the matrix asymmetric."""
    exact = fisher_problem(160, 40, [80], seed=1)
    noise = torch.randn(160, 160, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for problem in (exact, replace(exact, dense=exact.matrix * (1 + 1e-7 * noise))):
        solution = Swaps(rule).solve(problem)  # type: ignore[arg-type]
        assert solution.status is Status.LOCAL_OPTIMUM
        assert best_swap_change(problem, solution.assignment) >= -1e-12 * magnitude(problem)
        assert solution.value < problem.value(problem.incumbent)


@pytest.mark.parametrize("rule", ["best", "first"])
def test_rounding_is_no_improvement(rule: str) -> None:
    """Where all assignments have the same value but for rounding, none is preferred to the incumbent."""
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        part = torch.randn(40, generator=generator, dtype=torch.float64)
        groups = torch.zeros(40, dtype=torch.long)
        # x'B x / 2 = 15 part.x wherever 15 are pruned, and the linear term takes that away.
        incumbent = random_incumbent(groups, [15], generator)
        problem = BlockProblem(0.0, -15 * part, groups, incumbent, dense=part[:, None] + part)
        found = Swaps(rule).search(problem, 0)  # type: ignore[arg-type]
        assert torch.equal(found.assignment, problem.incumbent)


def test_only_the_symmetric_part_matters() -> None:
    """As in x'B x: a matrix that is not symmetric is averaged with its transpose."""
    for seed in range(5):
        problem = indefinite_problem(12, [6], seed)
        skew = torch.randn(12, 12, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).triu(1)
        rough = replace(problem, dense=problem.matrix + 3 * (skew - skew.T))
        for solver in (Exhaustive(), Swaps(), Swaps("first"), Greedy(), TabuSearch(30), Annealing(1)):
            check_solution(rough, solver.solve(rough, seed))
        assert torch.equal(Exhaustive().solve(rough).assignment, brute_force(problem)[0])


def test_cancelling_weights_are_found() -> None:
    """Pruning two weights that cancel is free: negative couplings count as much as positive ones."""
    effect = torch.tensor([1.0, -1.0, 0.3, 0.4], dtype=torch.float64)
    problem = BlockProblem(
        constant=0.0,
        linear=torch.zeros(4, dtype=torch.float64),
        groups=torch.zeros(4, dtype=torch.long),
        incumbent=torch.tensor([False, False, True, True]),
        dense=effect[:, None] * effect,
    )
    solution = Exhaustive().solve(problem)
    assert solution.assignment.tolist() == [True, True, False, False]
    assert solution.value == 0
    assert TabuSearch(20, 1).solve(problem).value == 0
    assert Annealing(1).solve(problem).value == 0


def test_tabu_and_annealing_leave_local_optima() -> None:
    """Started in a local optimum that is not the best, both reach the optimum."""
    tried = tabu_reached = annealing_reached = 0
    for seed in range(120):
        problem = indefinite_problem(12, [6], seed)
        stuck, (_, best) = Swaps().solve(problem), brute_force(problem)
        if stuck.value <= best + 1e-9:
            continue
        tried += 1
        there = replace(problem, incumbent=stuck.assignment)
        tabu_reached += TabuSearch(100, 3).solve(there).value <= best + 1e-9
        annealing_reached += Annealing(3).solve(there, seed).value <= best + 1e-9
    assert tried >= 10
    assert tabu_reached >= 0.9 * tried
    assert annealing_reached >= 0.9 * tried


def test_annealing_goes_lower_the_colder_it_is() -> None:
    """At one constant temperature each; cold enough, it ends in a local optimum."""
    problem, values = indefinite_problem(80, [40], seed=0), []
    for beta in (1e-6, 0.1, 1.0, 100.0):
        solution = Annealing(1, sweeps=100, beta_first=beta, beta_last=beta).solve(problem)
        values.append(solution.value)
    assert best_swap_change(problem, solution.assignment) >= 0
    assert values[0] > values[1] + 50 > values[2] + 100 >= values[3] + 90


def test_the_default_reaches_most_small_optima() -> None:
    """Two descents from good starts suffice on most problems such as pruning poses."""
    reached = 0
    for seed in range(100):
        problem = fisher_problem(12, 8, [6] if seed % 2 else [2, 3], seed)
        reached += Default().solve(problem).value <= brute_force(problem)[1] + 1e-9
    assert reached >= 75


def test_best_of_sums_work_and_keeps_the_best_bound() -> None:
    """And the answer is the lowest of all runs, each of another seed."""
    problem = fisher_problem(40, 6, [20], seed=3)
    weak = Annealing(1, beta_first=0.1, beta_last=1.0, factor=2.0)
    one, several = weak.solve(problem, 4), BestOf((weak,), runs=8).solve(problem, 4)
    assert several.value < one.value
    assert several.work == 8 * one.work
    assert several.solver == "best-of"
    small = fisher_problem(12, 5, [6])
    proved = BestOf((Swaps(max_swaps=0), Exhaustive()), runs=3).solve(small)
    assert proved.status is Status.OPTIMAL
    assert proved.work - Swaps(max_swaps=0).solve(small).work == 924
    assert proved.bound == pytest.approx(proved.value)


def test_polish_starts_where_the_solver_ended_even_above_the_incumbent() -> None:
    """Descent from another start gives another local optimum, sometimes a better one."""
    better = 0
    for seed in range(20):
        problem = fisher_problem(60, 6, [30], seed)
        local = replace(problem, incumbent=Swaps().solve(problem).assignment)
        assert Swaps().solve(local).status is Status.LOCAL_OPTIMUM
        better += Polish(Greedy()).solve(local).value < local.value(local.incumbent) - 1e-9
    assert better >= 3
    factored = replace(zoo()["factors and diagonal"])
    check_solution(factored, Polish(Greedy()).solve(factored))


@pytest.mark.parametrize(
    ("kind", "wrong", "words"),
    [
        (Exhaustive, {"limit": 0}, "limit of at least 1"),
        (Greedy, {"start": "full"}, "'kept' or 'pruned'"),
        (Swaps, {"rule": "worst"}, "'best' and 'first'"),
        (Swaps, {"max_swaps": -1}, "max_swaps"),
        (Annealing, {"restarts": 0}, "at least 1 restart"),
        (Annealing, {"sweeps": 0}, "1 sweep"),
        (Annealing, {"beta_first": 0.0}, "beta_first"),
        (Annealing, {"beta_first": 2.0, "beta_last": 1.0}, "beta_first <= beta_last"),
        (Annealing, {"beta_last": math.inf}, "beta_last"),
        (Annealing, {"beta_first": math.nan}, "beta_first"),
        (Annealing, {"factor": 1.0}, r"factor of at least 1\.0001"),
        (TabuSearch, {"iterations": 0}, "at least 1 iteration"),
        (TabuSearch, {"tenure": 0}, "tenure"),
        (BestOf, {"solvers": ()}, "at least one solver"),
        (BestOf, {"solvers": (Swaps(),), "runs": 0}, "at least 1 run"),
        (BestOf, {"solvers": ("swaps",)}, "list of at least one solver"),
        (Polish, {"solver": "greedy"}, "needs a solver"),
    ],
)
def test_a_setting_out_of_range_gets_one_sentence(
    kind: type[Solver], wrong: dict[str, object], words: str
) -> None:
    """The sentence names what is wrong."""
    # Not through the constructor, where the tests' own check of types would come first.
    solver = object.__new__(kind)
    for setting in fields(kind):
        if setting.name in wrong or setting.default is not MISSING:
            object.__setattr__(solver, setting.name, wrong.get(setting.name, setting.default))
    with pytest.raises(SecateurError, match=words) as caught:
        solver.__post_init__()  # type: ignore[attr-defined]
    assert kind.part_name in str(caught.value)


def test_settings_may_be_lists() -> None:
    """As a recipe gives them."""
    solver = object.__new__(BestOf)
    object.__setattr__(solver, "solvers", [Swaps(), Greedy()])
    object.__setattr__(solver, "runs", 2)
    solver.__post_init__()
    assert solver == BestOf((Swaps(), Greedy()), runs=2)


@pytest.mark.parametrize("part", ["constant", "linear", "dense", "factors", "diagonal"])
@pytest.mark.parametrize("entry", [math.nan, math.inf])
def test_what_is_not_finite_is_refused(part: str, entry: float) -> None:
    """No solver ever sees a NaN."""
    problem = zoo()["Fisher" if part == "dense" else "factors and diagonal"]
    old = getattr(problem, part)
    new = entry if part == "constant" else old.clone().index_fill_(0, torch.tensor([2]), entry)
    with pytest.raises(SecateurError, match="NaN or infinite"):
        replace(problem, **{part: new})


def test_the_generator_is_splitmix64() -> None:
    """The published outputs for the seed 1234567."""
    state = np.array([1234567], dtype=np.uint64)
    outputs = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert [int(draw(state)) for _ in outputs] == outputs


def test_draws_are_uniform() -> None:
    """Counts of 7 outcomes are within chance of one another (chi-squared, 6 degrees of freedom)."""
    state = np.array([1], dtype=np.uint64)
    drawn = np.bincount([draw_below(state, 7) for _ in range(14_000)], minlength=7)
    assert drawn.size == 7
    assert ((drawn - 2000) ** 2 / 2000).sum() < 22.5


def test_all_are_registered() -> None:
    """A recipe finds each by its name."""
    wanted = {"exhaustive", "greedy", "swaps", "annealing", "tabu", "best-of", "polish"}
    assert wanted <= set(names("solver"))


@dataclass(frozen=True)
class Fake(Solver):
    """A solver that hands back what it is told to."""

    flip: bool = False
    status: Status = Status.FEASIBLE
    worst: bool = False

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Hand it back."""
        if self.worst:
            opposite = replace(problem, linear=-problem.linear, dense=-problem.matrix)
            return Found(brute_force(opposite)[0], self.status, 0)
        return Found(problem.incumbent ^ self.flip, self.status, 0, bound=None)


def test_no_solver_can_return_worse_or_break_a_count() -> None:
    """The template falls back to the incumbent, and refuses what is infeasible."""
    problem = fisher_problem(9, 4, [3])
    fallen = Fake(worst=True).solve(problem)
    assert torch.equal(fallen.assignment, problem.incumbent)
    assert fallen.status is Status.INCUMBENT
    with pytest.raises(SecateurError, match="breaks a count"):
        Fake(flip=True).solve(problem)


def test_the_conformance_suite_can_fail() -> None:
    """A solver that calls the incumbent optimal is found out, and so is one that draws globally."""

    @register("solver", "liar")
    @dataclass(frozen=True)
    class Liar(Solver):
        def search(self, problem: BlockProblem, seed: int) -> Found:
            return Found(problem.incumbent, Status.OPTIMAL, 0)

    @register("solver", "gambler")
    @dataclass(frozen=True)
    class Gambler(Solver):
        def search(self, problem: BlockProblem, seed: int) -> Found:
            torch.rand(())
            return Found(problem.incumbent, Status.FEASIBLE, 0)

    suite = SolverConformance()
    suite.solver = Liar()
    with pytest.raises(AssertionError, match="optimal"):
        suite.test_zoo("indefinite")
    suite.solver = Gambler()
    with pytest.raises(AssertionError):
        suite.test_same_seed_same_answer()


@dataclass(frozen=True)
class Careless(Solver):
    """A solver that hands back anything."""

    answer: object = None

    def search(self, problem: BlockProblem, seed: int) -> Found:
        """Hand it back."""
        return self.answer  # type: ignore[return-value]


@pytest.mark.parametrize("bound", [1e9, math.nan, -math.inf, math.inf])
def test_a_bound_that_cannot_be_is_refused(bound: float) -> None:
    """Or a third party's mistake would become a certificate."""
    problem = fisher_problem(9, 4, [3])
    with pytest.raises(SecateurError, match=r"Careless\.search returned the lower bound"):
        Careless(Found(problem.incumbent, Status.FEASIBLE, 0, bound)).solve(problem)


def test_a_careless_answer_gets_one_sentence() -> None:
    """Of another type or shape than it must be."""
    problem = fisher_problem(9, 4, [3])
    for x in (problem.incumbent.long(), problem.incumbent.numpy(), problem.incumbent[:8]):
        answer = object.__new__(Found)  # past the run-time checks of the tests
        answer.__dict__.update(assignment=x, status=Status.FEASIBLE, work=0, bound=None)
        with pytest.raises(SecateurError, match=r"Careless\.search"):
            Solver.solve(Careless(answer), problem)
