"""Block problems as other people's: forms, penalties, repair, and answers from elsewhere."""

import itertools
import json
from dataclasses import replace

import dimod
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.core import extras
from secateur.core.answers import read_answers
from secateur.core.errors import SecateurError
from secateur.core.problem import BlockProblem
from secateur.core.qubo import MOST_VARIABLES
from secateur.core.solution import Solution, Status
from secateur.solvers import Annealing, Greedy
from secateur.solvers.samplers.repair import objective, repair
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
from secateur.testing.solvers import check_solution

SIZES = st.integers(1, 7)


@st.composite
def problems(draw: st.DrawFn) -> BlockProblem:
    """Any small problem: dense or in factors, any groups, empty and full ones included."""
    n = draw(SIZES)
    groups = torch.tensor(draw(st.lists(st.sampled_from([0, 1, 3]), min_size=n, max_size=n)))
    incumbent = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    linear = torch.randn(n, generator=generator, dtype=torch.float64)
    factors = torch.randn(n, 3, generator=generator, dtype=torch.float64)
    diagonal = torch.rand(n, generator=generator, dtype=torch.float64)
    kind = draw(st.sampled_from(["dense", "indefinite", "float32", "factors", "factors and diagonal"]))
    if kind == "factors":
        return BlockProblem(0.5, linear, groups, incumbent, factors=factors)
    if kind == "factors and diagonal":
        return BlockProblem(-1.5, linear, groups, incumbent, factors=factors.float(), diagonal=diagonal)
    half = torch.randn(n, n, generator=generator, dtype=torch.float64)
    matrix = half + half.T if kind == "indefinite" else half @ half.T
    if kind == "float32":
        return BlockProblem(0.0, linear.float(), groups, incumbent, dense=matrix.float())
    return BlockProblem(0.25, linear, groups, incumbent, dense=matrix)


def assignments(n: int) -> torch.Tensor:
    return torch.tensor(list(itertools.product([False, True], repeat=n)), dtype=torch.bool).reshape(-1, n)


def deviation(problem: BlockProblem, x: torch.Tensor) -> float:
    """The sum over the groups of the squared deviation from the count."""
    total = 0
    for group, count in enumerate(problem.counts.tolist()):
        total += (int(x[problem.groups == group].sum()) - count) ** 2
    return float(total)


# Forms.


@settings(max_examples=60, deadline=None)
@given(problem=problems(), penalty=st.sampled_from([None, 0, 0.7, 12.5, "auto"]))
def test_forms_have_the_energies_they_say(problem: BlockProblem, penalty: float | str | None) -> None:
    """Of every assignment: QUBO and BQM are objective and penalty, the CQM's parts are both apart."""
    everything = assignments(problem.size)
    qubo = problem.to_qubo(penalty)
    assert qubo.matrix.dtype == torch.float64
    assert torch.equal(qubo.matrix, qubo.matrix.triu())
    wanted = torch.tensor(
        [problem.value(x) + qubo.penalty * deviation(problem, x) for x in everything], dtype=torch.float64
    )
    unit = magnitude(problem) + qubo.penalty * problem.size**2 + 1e-300
    assert (qubo.energies(everything) - wanted).abs().max() <= 1e-12 * unit
    values = torch.tensor([problem.value(x) for x in everything], dtype=torch.float64)
    assert (objective(problem, everything) - values).abs().max() <= 1e-12 * unit

    labels = list(range(problem.size))
    bqm = problem.to_bqm(penalty)
    assert list(bqm.variables) == labels
    assert bqm.vartype is dimod.BINARY
    energies = bqm.energies((everything.numpy().astype(np.int8), labels))
    assert np.abs(energies - wanted.numpy()).max() <= 1e-12 * unit

    cqm = problem.to_cqm()
    for x, value in list(zip(everything, values.tolist(), strict=True))[::5]:
        sample = {i: int(bit) for i, bit in enumerate(x)}
        assert abs(cqm.objective.energy(sample) - value) <= 1e-12 * unit
        assert cqm.check_feasible(sample) == problem.is_feasible(x)


def test_constraints_are_labelled_by_group() -> None:
    problem = replace(fisher_problem(7, 3, [2], seed=0), groups=torch.tensor([0, 0, 3, 3, 3, 1, 0]))
    cqm = problem.to_cqm()
    assert set(cqm.constraints) == {"group 0", "group 1", "group 3"}
    for label, constraint in cqm.constraints.items():
        assert constraint.sense.value == "=="
        assert constraint.rhs == problem.counts[int(label.split()[1])]


def test_the_automatic_penalty_follows_the_problem() -> None:
    """It scales with the objective, and knows neither constant, nor incumbent, nor numbering."""
    problem = indefinite_problem(12, [3, 2], seed=4)
    penalty = problem.to_qubo().penalty
    assert penalty == pytest.approx(2**0.5 * problem.to_qubo(None).mean_size)
    assert scaled(problem, 1e-9).to_qubo().penalty == pytest.approx(1e-9 * penalty)
    assert replace(problem, constant=1e6).to_qubo().penalty == penalty
    other = random_incumbent(problem.groups, [3, 2], torch.Generator().manual_seed(9))
    assert replace(problem, incumbent=other).to_qubo().penalty == penalty
    order = torch.randperm(12, generator=torch.Generator().manual_seed(1))
    assert permuted(problem, order).to_qubo().penalty == pytest.approx(penalty)


def test_what_is_said_about_penalties_is_so() -> None:
    """The bound that guarantees the counts does; the automatic penalty is smaller, and does not."""
    broken = 0
    for seed in range(20):
        problem = indefinite_problem(10, [2, 1], seed)
        free = problem.to_qubo(None).matrix
        both = (free + free.triu(1).T).abs()
        everything = assignments(10)
        safe = problem.to_qubo(float(both.sum(1).max()))
        assert problem.is_feasible(everything[safe.energies(everything).argmin()])
        automatic = problem.to_qubo()
        assert 0 < automatic.penalty < safe.penalty
        broken += not problem.is_feasible(everything[automatic.energies(everything).argmin()])
    assert broken > 0


@pytest.mark.parametrize("penalty", [-1, float("nan"), float("inf"), "huge"])
def test_what_is_no_penalty_is_refused(penalty: float | str) -> None:
    with pytest.raises(SecateurError, match="a penalty is a number of at least 0"):
        fisher_problem(6, 3, [3]).to_qubo(penalty)


def test_what_no_memory_holds_is_refused() -> None:
    n = MOST_VARIABLES + 1
    problem = BlockProblem(
        0.0, torch.zeros(n), torch.zeros(n, dtype=torch.long), torch.arange(n) < 5, factors=torch.zeros(n, 1)
    )
    with pytest.raises(SecateurError, match=f"{n} variables is too large"):
        problem.to_bqm()


def test_without_dimod_there_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'")

    monkeypatch.setattr(extras, "import_module", absent)
    with pytest.raises(SecateurError, match=r"pip install 'secateur\[quantum\]'"):
        fisher_problem(6, 3, [3]).to_bqm()


# Repair.


def naive_repair(problem: BlockProblem, x: torch.Tensor) -> torch.Tensor:
    """Flip one variable after the other, each the cheapest by the whole objective, group by group."""
    x = x.clone()
    for group, count in enumerate(problem.counts.tolist()):
        while (total := int(x[problem.groups == group].sum())) != count:
            costs = {}
            for i in torch.nonzero((problem.groups == group) & (x == (total > count))).flatten().tolist():
                x[i] = ~x[i]
                costs[i] = problem.value(x)
                x[i] = ~x[i]
            best = min(costs, key=lambda i: costs[i])
            x[best] = ~x[best]
    return x


@settings(max_examples=60, deadline=None)
@given(problem=problems(), seed=st.integers(0, 100))
def test_repair_is_feasible_and_leaves_what_is(problem: BlockProblem, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(12, problem.size, generator=generator) < 0.5
    x[0] = problem.incumbent
    before = x.clone()
    mended = repair(problem, x)
    assert torch.equal(x, before)
    assert torch.equal(mended[0], problem.incumbent)
    for old, new in zip(x, mended, strict=True):
        assert problem.is_feasible(new)
        if problem.is_feasible(old):
            assert torch.equal(old, new)
        # No variable is flipped that need not be.
        excess = sum(
            abs(int(old[problem.groups == g].sum()) - k) for g, k in enumerate(problem.counts.tolist())
        )
        assert int((old ^ new).sum()) == excess
    assert torch.equal(repair(problem, x.flip(0)).flip(0), mended)


def test_repair_is_greedy_with_exact_costs() -> None:
    """As flipping one variable after the other by the whole objective, while few are missing."""
    for seed in range(5):
        problem = indefinite_problem(16, [8], seed)
        generator = torch.Generator().manual_seed(seed)
        x = torch.stack([random_incumbent(problem.groups, [k], generator) for k in (4, 6, 7, 9, 10, 12)])
        assert torch.equal(repair(problem, x), torch.stack([naive_repair(problem, row) for row in x]))


def test_repair_from_far_off() -> None:
    """From all zeros and all ones nearly as good as greedy construction, which goes one by one."""
    problem = fisher_problem(400, 50, [200], seed=1)
    far = torch.stack([torch.zeros(400, dtype=torch.bool), torch.ones(400, dtype=torch.bool)])
    values = objective(problem, repair(problem, far))
    generator = torch.Generator().manual_seed(0)
    chance = torch.stack([random_incumbent(problem.groups, [200], generator) for _ in range(50)])
    greedy = Greedy().solve(problem).value
    assert values.max() < 0.9 * greedy < 0 < objective(problem, chance).min()


def test_repair_takes_the_factor_form() -> None:
    """The same as the dense form, without forming B."""
    problem = zoo(2)["factors and diagonal"]
    x = torch.rand(30, 12, generator=torch.Generator().manual_seed(3)) < 0.5
    mended = repair(problem, x)
    assert "matrix" not in problem.memory
    dense = replace(problem, dense=problem.matrix, factors=None, diagonal=None)
    assert torch.equal(repair(dense, x), mended)


# Answers from samplers.


def sample(problem: BlockProblem, rows: torch.Tensor, **options) -> dimod.SampleSet:
    bqm = problem.to_bqm(options.pop("penalty", "auto"))
    return dimod.SampleSet.from_samples_bqm((rows.numpy().astype(np.int8), list(range(problem.size))), bqm)


def test_the_best_read_becomes_the_solution() -> None:
    """Whatever its place, its order of variables and its alphabet."""
    for seed in range(5):
        problem = indefinite_problem(10, [3, 2], seed)
        best, value = brute_force(problem)
        rows = torch.rand(6, 10, generator=torch.Generator().manual_seed(seed)) < 0.5
        rows[4] = best
        plain = sample(problem, rows)
        order = torch.randperm(10, generator=torch.Generator().manual_seed(seed)).tolist()
        shuffled = dimod.SampleSet.from_samples(
            (rows.numpy().astype(np.int8)[:, order], order), "BINARY", energy=np.zeros(6)
        )
        named = plain.relabel_variables({i: f"x{i}" for i in range(10)}, inplace=False)
        for sampleset in (plain, shuffled, named, plain.change_vartype("SPIN", inplace=False)):
            solution = Solution.from_sampleset(problem, sampleset)
            assert torch.equal(solution.assignment, best)
            assert solution.value == pytest.approx(value, abs=1e-12)
            assert solution.solver == "sampleset"
            check_solution(problem, solution)


@pytest.mark.parametrize("kind", zoo())
def test_any_read_becomes_a_solution(kind: str) -> None:
    problem = zoo(1)[kind]
    for fill in (0.0, 0.3, 1.0):
        rows = torch.rand(4, problem.size, generator=torch.Generator().manual_seed(2)) < fill
        if problem.size:
            check_solution(problem, Solution.from_sampleset(problem, sample(problem, rows)))


def test_a_constrained_sampleset_is_understood() -> None:
    problem = fisher_problem(8, 4, [2, 2], seed=1)
    sampleset = dimod.ExactCQMSolver().sample_cqm(problem.to_cqm())
    solution = Solution.from_sampleset(problem, sampleset)
    assert solution.value == pytest.approx(brute_force(problem)[1], abs=1e-12)


def test_what_polishes_can_be_chosen_and_the_sampler_named() -> None:
    problem = indefinite_problem(14, [7], seed=2)
    sampleset = sample(problem, problem.incumbent[None])
    sampleset.info["solver"] = "somebody's"
    solution = Solution.from_sampleset(problem, sampleset, polish=Annealing(restarts=2))
    check_solution(problem, solution)
    assert solution.solver == "somebody's"
    assert solution.status is Status.FEASIBLE


def test_a_sampleset_of_another_problem_is_refused() -> None:
    problem = fisher_problem(6, 3, [3])
    larger = fisher_problem(7, 3, [3])
    smaller = fisher_problem(5, 3, [3])
    for other in (larger, smaller):
        with pytest.raises(SecateurError, match="another problem"):
            Solution.from_sampleset(problem, sample(other, other.incumbent[None]))
    with pytest.raises(SecateurError, match=r"a dimod\.SampleSet is needed"):
        Solution.from_sampleset(problem, [0, 1])
    with pytest.raises(SecateurError, match="at least one"):
        Solution.from_sampleset(problem, sample(problem, torch.zeros(0, 6, dtype=torch.bool)))


# Answers in files.

X = [0, 1, 1, 0, 1, 0]
ANSWERS = {
    "list.json": json.dumps(X),
    "lists.json": json.dumps([X, X]),
    "ours.json": json.dumps({"assignment": X, "value": -1.0}),
    "named.json": json.dumps({f"x{i}": v for i, v in enumerate(X) if v}),
    "several.json": json.dumps([{f"x{i}": v for i, v in enumerate(X)}]),
    "spins.json": json.dumps([2 * v - 1 for v in X]),
    "truth.json": json.dumps([bool(v) for v in X]),
    "rows.txt": "# two reads\n0 1 1 0 1 0\n0 1 1 0 1 0\n",
    "together.txt": "011010\n011010\n",
    "column.txt": "0\n1\n1\n0\n1\n0\n",
    "plain.csv": "0,1,1,0,1,0\n",
    "names.csv": "x5,x4,x3,x2,x1,x0,energy\n0,1,0,1,1,0,-3.5\n",
    "pandas.csv": ",0,1,2,3,4,5,energy,num_occurrences\n0,0,1,1,0,1,0,-3.5,1\n",
    "pairs.csv": "x1,1\nx2,1\nx4,1\nx0,0\n",
    "gurobi.sol": (
        "# Solution for model obj\n# Objective value = -3.5\nx0 0\nx1 1\nx2 9.9999999e-01\nx3 0\nx4 1\n"
        "x5 -0\n"
    ),
    "scip.sol": (
        "solution status: optimal solution found\nobjective value:                  -3.5\n"
        "x1                                   1 \t(obj:-1)\nx2         1 \t(obj:0.5)\nx4   1 \t(obj:2)\n"
        "quadobjvar               -7.25 \t(obj:1)\n"
    ),
    "highs.sol": (
        "Model status\nOptimal\n\n# Primal solution values\nFeasible\nObjective -3.5\n# Columns 6\n"
        "x0 0\nx1 1\nx2 1\nx3 0\nx4 1\nx5 0\n# Rows 1\ngroup0 3\n\n"
        "# Dual solution values\nFeasible\n# Columns 6\nx0 0.5\nx1 0\n"
    ),
    "cplex.sol": (
        '<?xml version = "1.0"?>\n<CPLEXSolution version="1.2">\n <header objectiveValue="-3.5"/>\n'
        " <variables>\n"
        + "".join(f'  <variable name="x{i}" index="{i}" value="{v}"/>\n' for i, v in enumerate(X))
        + " </variables>\n</CPLEXSolution>\n"
    ),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_answer_files(tmp_path, name: str) -> None:
    (tmp_path / name).write_text(ANSWERS[name])
    reads = read_answers(tmp_path / name, 6)
    assert reads.dtype == torch.bool
    assert all(row == [bool(v) for v in X] for row in reads.tolist())
    assert len(reads) == (2 if name in ("lists.json", "rows.txt", "together.txt") else 1)


def test_answer_files_of_numpy_and_dimod(tmp_path) -> None:
    problem = fisher_problem(6, 3, [3])
    rows = torch.tensor([X, [1, 1, 1, 0, 0, 0]]).bool()
    np.save(tmp_path / "a.npy", rows.numpy())
    np.savez(tmp_path / "b.npz", reads=rows.numpy().astype(float))
    np.savez(tmp_path / "c.npz", assignment=rows.numpy(), energies=np.zeros(2))
    (tmp_path / "d.json").write_text(json.dumps(sample(problem, rows).to_serializable()))
    sample(problem, rows).to_pandas_dataframe().to_csv(tmp_path / "e.csv")
    for name in ("a.npy", "b.npz", "c.npz", "d.json", "e.csv"):
        assert torch.equal(read_answers(tmp_path / name, 6), rows), name


def test_highs_own_solution_file(tmp_path) -> None:
    """As HiGHS writes it, for a linear objective."""
    highspy = pytest.importorskip("highspy")
    model = highspy.Highs()
    model.setOptionValue("output_flag", False)
    columns = [model.addBinary(name=f"x{i}") for i in range(6)]
    model.addConstr(sum(columns) == 3, name="group0")
    model.minimize(sum((1 - 2 * bit) * column for bit, column in zip(X, columns, strict=True)))
    for style in (0, 4):  # in full, and what is not zero
        model.writeSolution(str(tmp_path / "highs.sol"), style)
        assert read_answers(tmp_path / "highs.sol", 6).tolist() == [[bool(v) for v in X]]


def test_a_file_becomes_a_solution(tmp_path) -> None:
    """Repaired, polished, scored, never worse than the incumbent."""
    problem = fisher_problem(12, 5, [6], seed=4)
    best, value = brute_force(problem)
    (tmp_path / "good.json").write_text(json.dumps(best.int().tolist()))
    (tmp_path / "off.txt").write_text("1" * 12 + "\n" + "0" * 12 + "\n")
    good = Solution.from_file(problem, tmp_path / "good.json")
    assert torch.equal(good.assignment, best)
    assert good.value == pytest.approx(value, abs=1e-12)
    assert good.solver == "good.json"
    check_solution(problem, Solution.from_file(problem, tmp_path / "off.txt"))
    kept = Solution.from_file(replace(problem, incumbent=best), tmp_path / "off.txt", polish=Greedy())
    assert torch.equal(kept.assignment, best)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("short.json", "[0, 1]", "1 x 2, and the problem has 6"),
        ("half.json", "[0, 1, 0.5, 0, 1, 0]", "x2 the value 0.5"),
        ("nan.json", "[0, 1, NaN, 0, 1, 0]", "neither 0 nor 1"),
        ("mixed.json", "[0, 1, -1, 0, 1, 0]", "neither 0 nor 1"),
        ("broken.json", "[0, 1", "cannot read"),
        ("words.json", '"yes"', "cannot read"),
        ("ragged.json", "[[0, 1, 1, 0, 1, 0], [1]]", "cannot read"),
        ("empty.json", "[]", "the problem has 6"),
        ("far.sol", "x6 1\n", "no variable '6'"),
        ("twice.sol", "x1 1\nx1 0\n", "twice"),
        ("empty.txt", "", "the problem has 6"),
        ("columns.csv", "x0,x1,x2,x3,x4\n0,1,1,0,1\n", "no variable x5"),
        ("cut.csv", "x0,x1,x2,x3,x4,x5\n0,1,1\n", "cannot read"),
        ("damaged.npz", "PK\x03\x04 not a zip", "cannot read"),
        ("damaged.npy", "", "cannot read"),
    ],
)
def test_damaged_answers_are_one_sentence(tmp_path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SecateurError, match=words) as caught:
        read_answers(tmp_path / name, 6)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_missing_answer_is_said(tmp_path) -> None:
    with pytest.raises(SecateurError, match="no answer file"):
        read_answers(tmp_path / "none.json", 3)
