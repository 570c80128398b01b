"""The batched solver against the numba solvers, scipy, brute force and naive rewritings of itself."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.optimize import LinearConstraint, minimize

from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.solution import Status
from secateur.solvers import Relaxation, Swaps
from secateur.solvers.batched import Batched, Stack, anneal, descend, dual_bound, relax
from secateur.solvers.batched.draws import below, bits, chance
from secateur.solvers.batched.groups import Groups
from secateur.solvers.batched.relaxation import project
from secateur.testing.problems import (
    best_swap_change,
    brute_force,
    fisher_problem,
    indefinite_problem,
    magnitude,
    random_incumbent,
    zoo,
)
from secateur.testing.solvers import ROUNDING, SolverConformance, check_solution

ROWS, UNEVEN = torch.arange(48) // 12, torch.randint(0, 5, (48,), generator=torch.Generator().manual_seed(1))
STRUCTURES = {
    "one group": ([24], None),
    "few pruned": ([5], None),
    "a group a row": ([6, 3, 9, 6], ROWS),
    "two of four": ([2] * 12, torch.arange(48) // 4),
    "across": ([4, 8, 2], None),
    "two wide": ([20, 14], None),
    "uneven, one empty, one full": ([4, 0, 2, int((UNEVEN == 3).sum()), 3], UNEVEN),
}


class TestBatched(SolverConformance):
    solver = Batched(iterations=8, restarts=2)


class TestBatchedWithEverything(SolverConformance):
    solver = Batched(iterations=4, restarts=3, sweeps=1, exact=True)


def draw(structure: str, make: str, seed: int) -> BlockProblem:
    """A problem of 48 variables."""
    counts, groups = STRUCTURES[structure]
    if make == "indefinite":
        return indefinite_problem(48, counts, seed, groups)
    return fisher_problem(48, 20, counts, seed, groups)


def by_factors(n: int, samples: int, counts: list[int], seed: int, spread: float = 0.0) -> BlockProblem:
    """A problem by factors, with a diagonal of either sign if spread is not zero."""
    plain = fisher_problem(n, samples, counts, seed)
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(n, samples, generator=generator, dtype=torch.float64)
    diagonal = spread * torch.randn(n, generator=generator, dtype=torch.float64)
    return replace(plain, dense=None, factors=factors, diagonal=diagonal if spread else None)


def random_starts(problems: list[BlockProblem], r: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.stack(
        [
            torch.stack([random_incumbent(p.groups, p.counts.tolist(), generator) for _ in range(r)])
            for p in problems
        ]
    )


@pytest.mark.parametrize("make", ["fisher", "indefinite"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_descents_are_those_of_swaps(structure: str, make: str) -> None:
    """From the same starts the same swaps, one by one: the same ends."""
    problems = [draw(structure, make, seed) for seed in range(4)]
    starts = random_starts(problems, 3)
    ends = descend(Stack.of(problems), starts)
    assert ends.local.all()
    for problem, begin, x, values in zip(problems, starts, ends.assignments, ends.values, strict=True):
        for start, end, value in zip(begin, x, values.tolist(), strict=True):
            other = Swaps().search(replace(problem, incumbent=start), 0).assignment
            assert torch.equal(end, other)
            assert value == pytest.approx(problem.value(other), abs=ROUNDING * magnitude(problem))


@pytest.mark.parametrize("make", ["fisher", "indefinite"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_hasty_descents_end_in_local_optima(structure: str, make: str) -> None:
    """Where not all swaps were compared on the way, all are at the end."""
    problems = [draw(structure, make, seed) for seed in range(2)]
    starts = random_starts(problems, 2)
    ends = descend(Stack.of(problems), starts, exact=False)
    assert ends.local.all()
    for problem, begin, x in zip(problems, starts, ends.assignments, strict=True):
        for start, end in zip(begin, x, strict=True):
            assert problem.is_feasible(end)
            assert problem.value(end) <= problem.value(start)
            assert best_swap_change(problem, end) >= -ROUNDING * magnitude(problem)


@pytest.mark.parametrize("counts", [[20], [2, 9, 4]])
@pytest.mark.parametrize("exact", [True, False])
def test_factors_are_the_matrix(counts: list[int], exact: bool) -> None:
    """Never formed, formed, or given dense: the same problem."""
    problems = [by_factors(40, 7, counts, seed, spread=3.0) for seed in range(3)]
    dense = [replace(p, dense=p.matrix, factors=None, diagonal=None) for p in problems]
    stacks = [Stack.of(problems, formed_up_to=0), Stack.of(problems), Stack.of(dense)]
    assert [stack.formed for stack in stacks] == [False, True, True]
    assert stacks[0].quadratic.shape == (3, 40, 7)
    starts = random_starts(problems, 2)
    every = [descend(stack, starts, exact) for stack in stacks]
    assert torch.equal(every[1].assignments, every[2].assignments)
    for ends in every:
        for problem, x, value in zip(problems, ends.assignments, ends.values, strict=True):
            assert problem.value(x[0]) == pytest.approx(float(value[0]), rel=1e-10)
            assert best_swap_change(problem, x[1]) >= -ROUNDING * magnitude(problem)
    if exact:  # the bounds that say where to look are looser by factors
        assert torch.equal(every[0].assignments, every[1].assignments)


def test_without_relaxation_it_is_swaps() -> None:
    """One start, the incumbent, and the best swaps."""
    for problem in (draw("one group", "fisher", 9), draw("across", "indefinite", 9)):
        ours, theirs = Batched(iterations=0, restarts=1, exact=True).solve(problem), Swaps().solve(problem)
        assert torch.equal(ours.assignment, theirs.assignment)
        assert (ours.value, ours.status) == (theirs.value, theirs.status)


def scipy_minimum(problem: BlockProblem) -> float:
    """The minimum of the relaxation, by sequential quadratic programming."""
    linear, matrix = problem.linear.double().numpy(), problem.matrix.numpy()
    groups, counts = problem.groups.numpy(), problem.counts.double().numpy()
    rows = (groups == np.arange(counts.size)[:, None]).astype(float)
    there = rows.sum(1) > 0
    best = minimize(
        lambda x: linear @ x + 0.5 * x @ matrix @ x,
        rows.T @ (counts / np.maximum(rows.sum(1), 1)),
        jac=lambda x: linear + matrix @ x,
        bounds=[(0, 1)] * problem.size,
        constraints=[LinearConstraint(rows[there], counts[there], counts[there])],
        method="SLSQP",
        options={"maxiter": 500, "ftol": 1e-12},
    )
    return problem.constant + best.fun


@pytest.mark.parametrize("counts", [[6], [2], [1, 2, 1, 1], [2, 0, 0, 3]])
def test_relaxation_is_scipys(counts: list[int]) -> None:
    """The minimum agrees, and the bound lies just below it."""
    uneven = torch.tensor([0, 0, 1, 1, 1, 1, 1, 3, 3, 3, 3, 3])
    groups = uneven if counts == [2, 0, 0, 3] else None
    problems = [fisher_problem(12, samples, counts, samples, groups) for samples in (3, 8, 30)]
    stack = Stack.of(problems)
    x = relax(stack, 400)
    assert torch.allclose(stack.groups.total(x), stack.groups.counts.double(), atol=1e-9)
    assert x.min() >= 0
    assert x.max() <= 1
    bounds = dual_bound(stack, x)
    for problem, point, bound in zip(problems, x, bounds.tolist(), strict=True):
        value = problem.constant + float(problem.linear @ point + 0.5 * point @ problem.matrix @ point)
        truth, unit = scipy_minimum(problem), magnitude(problem)
        assert value == pytest.approx(truth, abs=1e-6 * unit)
        assert truth - 1e-4 * unit <= bound <= brute_force(problem)[1]


@pytest.mark.parametrize("iterations", [0, 3, 60])
def test_bounds_hold_wherever_the_relaxation_stops(iterations: int) -> None:
    """Below the optimum of every convex problem of the zoo; none where B is not convex."""
    problems = zoo(1)
    stack = Stack.of(list(problems.values()))
    bounds = dict(zip(problems, dual_bound(stack, relax(stack, iterations)).tolist(), strict=True))
    for kind, problem in problems.items():
        assert bounds[kind] <= brute_force(problem)[1] + 1e-13 * magnitude(problem)
    assert all(bounds[kind] == -math.inf for kind in ("indefinite", "negative definite", "ties", "huge"))
    assert all(
        math.isfinite(bounds[kind]) for kind in ("Fisher", "Fisher, float32", "factors", "zero", "linear")
    )


def test_bounds_agree_with_the_cpus() -> None:
    """Two relaxations by different methods; a diagonal of either sign moves into the linear term."""
    problems = [by_factors(60, 12, [20], 1), by_factors(60, 12, [8, 20], 2, spread=5.0)]
    problems.append(replace(fisher_problem(60, 30, [20], 3), convex=True))
    stack = Stack.of(problems)
    bounds = dual_bound(stack, relax(stack, 500), certify=False)
    for problem, bound in zip(problems, bounds.tolist(), strict=True):
        theirs = Relaxation(tolerance=1e-6).lower_bound(problem)
        assert theirs is not None
        assert bound == pytest.approx(theirs, abs=1e-4 * (problem.value(problem.incumbent) - theirs))


def test_what_convexity_is_known() -> None:
    """By nature, by word, by trial, or not at all."""
    fisher = fisher_problem(20, 5, [10])
    wild = indefinite_problem(20, [10])
    problems = [fisher, replace(fisher, convex=True), replace(fisher, convex=False), wild]
    stack = Stack.of(problems)
    x = relax(stack, 50)
    assert dual_bound(stack, x, certify=False).isfinite().tolist() == [False, True, False, False]
    assert dual_bound(stack, x).isfinite().tolist() == [True, True, False, False]


def test_projection() -> None:
    """The nearest point in the metric: the conditions of Karush, Kuhn and Tucker hold."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 4, (6, 30), generator=generator)
    pruned = torch.rand(6, 30, generator=generator) < 0.4
    groups = Groups.of(labels, pruned)
    point = 2 * torch.randn(6, 30, generator=generator, dtype=torch.float64)
    loose = torch.rand(6, 30, generator=generator, dtype=torch.float64) + 0.1
    shift = torch.zeros(6, 4, dtype=torch.float64)
    for _ in range(8):
        x, shift = project(groups, point, loose, shift)
    assert torch.allclose(groups.total(x), groups.counts.double(), atol=1e-9)
    pull = (point - x) / loose - groups.spread(shift)  # zero inside, outwards at the ends
    assert (pull[(x > 0) & (x < 1)].abs() < 1e-9).all()
    assert (pull[x == 0] <= 0).all()
    assert (pull[x == 1] >= 0).all()


def test_groups() -> None:
    """Sums, minima and ranks over interleaved groups of different sizes, and padding."""
    labels = torch.tensor([[2, 0, 2, 0, 2, -1], [1, 1, 1, 1, 1, 1]])
    pruned = torch.tensor([[True, False, True, True, False, False], [True, True, False, False, False, False]])
    groups = Groups.of(labels, pruned)
    values = torch.tensor([[1.0, 2, 3, 4, 5, 6], [6, 6, 1, 1, 6, 1]])
    assert groups.total(values).tolist() == [[6, 0, 9, 6], [0, 21, 0, 0]]
    assert groups.low(values).tolist() == [[2, math.inf, 1, 6], [math.inf, 1, math.inf, math.inf]]
    assert groups.largest(values).long().tolist() == [[0, 0, 1, 1, 1, 0], [1, 1, 0, 0, 0, 0]]
    assert groups.swappable().tolist() == [True, True]
    assert groups.chosen(pruned, 2).tolist() == [
        [[3, 6], [6, 6], [0, 2], [6, 6]],
        [[6, 6], [0, 1], [6, 6], [6, 6]],
    ]
    runs = Groups.of(torch.tensor([[0, 0, 1, 1]]), torch.tensor([[True, False, True, True]]))
    assert runs.places is None
    assert runs.chosen(torch.tensor([[False, True, True, True]]), 2).tolist() == [[[1, 4], [2, 3]]]
    assert runs.swappable().tolist() == [True]


def splitmix(key: int, place: int) -> int:
    """SplitMix64 in Python's integers."""
    z = (key + (place + 1) * 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def test_draws_are_splitmix() -> None:
    """Signed arithmetic that wraps round gives the same bits."""
    keys, places = torch.tensor([0, 1, -5, 2**62]), torch.tensor([0, 7, 123456789, 3])
    random = bits(keys, places)
    truth = [splitmix(k, p) for k, p in zip(keys.tolist(), places.tolist(), strict=True)]
    assert [z % 2**64 for z in random.tolist()] == truth
    assert chance(random).tolist() == [(z >> 11) * 2.0**-53 for z in truth]
    bound = torch.tensor([10, 1, 100000, 7])
    assert below(random, bound, low=False).tolist() == [
        (z >> 32) * n >> 32 for z, n in zip(truth, bound.tolist(), strict=True)
    ]
    assert below(random, bound, low=True).tolist() == [
        z % 2**32 * n >> 32 for z, n in zip(truth, bound.tolist(), strict=True)
    ]


def naive_annealing(problem: BlockProblem, start: torch.Tensor, key: int, betas: list[float]) -> torch.Tensor:
    """One proposal after another, each by the whole objective."""
    labels, counts = problem.groups.tolist(), problem.counts.tolist()
    order = sorted(range(problem.size), key=lambda i: (labels[i], not start[i], i))
    slots = sorted(range(problem.size), key=lambda slot: labels[order[slot]])
    group = [labels[order[slot]] for slot in slots]
    first = [group.index(g) if g in group else 0 for g in range(len(counts))]
    kept = [s for s in slots if s - first[group[s]] >= counts[group[s]] and counts[group[s]] > 0]
    unit = float(problem.matrix.norm()) / problem.size
    best, x = start.clone(), start.clone()
    for time in range(len(betas) * problem.size):
        random, luck = splitmix(key, 2 * time), (splitmix(key, 2 * time + 1) >> 11) * 2.0**-53
        here = kept[(random >> 32) * len(kept) >> 32]
        there = first[group[here]] + (random % 2**32 * counts[group[here]] >> 32)
        trial = x.clone()
        trial[order[here]], trial[order[there]] = True, False
        rise = problem.value(trial) - problem.value(x)
        if luck < math.exp(min(0.0, -betas[time // problem.size] / unit * rise)):
            x, order[here], order[there] = trial, order[there], order[here]
            best = x if problem.value(x) < problem.value(best) else best
    return best


@pytest.mark.parametrize("structure", ["one group", "across"])
def test_annealing_is_one_by_one(structure: str) -> None:
    """Weighing many proposals at once changes nothing, nor does the company of other problems."""
    problem, other = draw(structure, "indefinite", 3), indefinite_problem(60, [30], 8)
    keys, betas = torch.tensor([[12345, -678]]), torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    starts = random_starts([problem], 2)
    seen, work = anneal(Stack.of([problem]), starts, keys, betas)
    assert work.tolist() == [2 * 3 * 48]
    for start, key, end in zip(starts[0], keys[0].tolist(), seen[0], strict=True):
        assert torch.equal(end, naive_annealing(problem, start, key, betas.tolist()))
        assert problem.value(end) < problem.value(start)
    alone, _ = anneal(Stack.of([problem]), starts, keys, betas, lookahead=1)
    assert torch.equal(alone, seen)
    padded = torch.nn.functional.pad(starts, (0, 12))
    company = torch.cat([padded, random_starts([other], 2)])
    together, _ = anneal(Stack.of([problem, other]), company, keys.repeat(2, 1), betas)
    assert torch.equal(together[:1, :, :48], seen)
    assert not together[0, :, 48:].any()


@pytest.mark.parametrize("sweeps", [0, 3])
def test_many_at_once(sweeps: int) -> None:
    """Problems of any sizes and forms: each answer true to its word, and as if solved alone."""
    problems = list(zoo(2).values())
    solver = Batched(iterations=20, restarts=3, sweeps=sweeps)
    answers = solver.solve_many(problems, seed=4)
    for problem, answer in zip(problems, answers, strict=True):
        value = problem.value(answer.assignment)
        assert answer.value == pytest.approx(value, abs=1e-13 * magnitude(problem))
        check_solution(problem, replace(answer, value=value, before=problem.value(problem.incumbent)))
    first = solver.solve(problems[0], 4)
    assert torch.equal(first.assignment, answers[0].assignment)
    one_by_one = replace(solver, at_once=1).solve_many(problems, seed=4)
    assert [a.value for a in one_by_one] == pytest.approx([a.value for a in answers], rel=1e-9, abs=1e-13)
    assert {a.status for a in answers} >= {Status.OPTIMAL, Status.LOCAL_OPTIMUM}
    assert solver.solve_many([]) == []


def test_more_restarts_are_no_worse() -> None:
    """Starts are added, and the best is kept; the gap closes."""
    problems = [fisher_problem(64, 30, [20], seed) for seed in range(4)]
    values = []
    for restarts in (1, 2, 8):
        answers = Batched(restarts=restarts).solve_many(problems)
        values.append([answer.value for answer in answers])
        assert all(answer.gap is not None and answer.gap < 0.5 for answer in answers)
    assert all(a >= b >= c for a, b, c in zip(*values, strict=True))
    assert values[0] != values[2]


def test_float32_says_what_it_knows() -> None:
    """A problem given in float32 is held as it is; one in float64 is rounded, and nothing is proven."""
    fine = fisher_problem(40, 30, [20], 5)
    matrix = fine.matrix.float()
    coarse = replace(fine, dense=0.5 * (matrix + matrix.T), linear=fine.linear.float())
    narrow, wide = Batched(dtype="float32"), Batched()
    rounded, exact = narrow.solve_many([fine])[0], narrow.solve_many([coarse])[0]
    assert (rounded.status, rounded.bound) == (Status.FEASIBLE, None)
    assert rounded.value == pytest.approx(fine.value(rounded.assignment), rel=1e-12)
    assert exact.status is Status.LOCAL_OPTIMUM
    assert exact.bound is not None
    assert exact.value == pytest.approx(wide.solve(coarse).value, rel=1e-12)
    formed, kept = (Stack.of([by_factors(9, 3, [4], 0)], torch.float32, formed_up_to=n) for n in (9, 8))
    assert not formed.faithful.any()
    assert not kept.faithful.any()


@pytest.mark.parametrize(
    "wrong",
    [{"iterations": -1}, {"restarts": 0}, {"sweeps": -1}, {"at_once": 0}],
    ids=str,
)
def test_wrong_settings(wrong: dict[str, object]) -> None:
    """Refused in one sentence."""
    with pytest.raises(SecateurError, match="the solver 'batched'"):
        replace(Batched(), **wrong)


def test_a_stack_of_nothing() -> None:
    """Refused."""
    with pytest.raises(SecateurError, match="at least one"):
        Stack.of([])


@pytest.mark.gpu
def test_a_gpu_agrees() -> None:
    """The same ends as on the CPU, and twice the same."""
    problems = [fisher_problem(200, 64, [60], seed) for seed in range(20)]
    problems += [by_factors(150, 20, [30, 20], seed, spread=1.0) for seed in range(5)]
    for solver in (Batched(sweeps=2), Batched(exact=True, restarts=2)):
        here = solver.solve_many(problems, seed=1)
        there, again = (replace(solver, device="cuda").solve_many(problems, seed=1) for _ in range(2))
        assert [a.value for a in there] == [a.value for a in again]
        assert [a.value for a in there] == pytest.approx([a.value for a in here], rel=1e-9)
        assert [a.bound for a in there] == pytest.approx([a.bound for a in here], rel=1e-9)
        assert all(a.assignment.device.type == "cpu" for a in there)
