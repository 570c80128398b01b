"""Real blocks out of a run, and solving them: `secateur export-block` and `secateur solve`."""

import json
from dataclasses import replace

import pytest
import torch

from secateur import ICBS
from secateur.allocation import Uniform
from secateur.cli.app import run
from secateur.core.errors import SecateurError
from secateur.core.solution import Solution
from secateur.exchange import load_indices, load_problem, save_problem
from secateur.pruners import Batches, Network, Session, Stage, Trust
from secateur.recipes import load, prepare
from secateur.selection import LargestGain, RoundRobin
from secateur.solvers import Swaps
from secateur.testing import networks
from secateur.testing.problems import brute_force, fisher_problem

SMALL = """
about = "very small"
data = "digits"
[model]
name = "trained"
epochs = 1
network = { name = "mlp", widths = [64, 16, 10] }
[run]
density = 0.2
"""
ONE_BLOCK = ICBS(
    solver=Swaps(),
    stage=Stage(blocks=1, block_size=12, multiplier=1.0),
    batches=Batches(size=32),
    trust=Trust(ridge=0.0, adapt=False),  # without it the objective is the predicted change
    share=0.0,
)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("SECATEUR_ASSETS", raising=False)
    (tmp_path / "small.toml").write_text(SMALL)


def lines(capsys):
    captured = capsys.readouterr()
    return captured.out + captured.err


def said(capsys, *words: str) -> str:
    """The one sentence that a mistake is answered with."""
    assert run(list(words)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


# The hook: a step's first block, posed and not solved.


@pytest.mark.parametrize("order", [RoundRobin(), LargestGain()], ids=repr)
@pytest.mark.parametrize("grouping", ["layer", "output"])
def test_what_is_posed_is_what_the_next_step_solves(order, grouping) -> None:
    pruner = replace(ONE_BLOCK, order=order)
    net = networks.mlp()
    network = Network(net.model)
    session = Session(network, net.task, Uniform().budget(network.shapes, 0.5, grouping), 0)
    state = pruner.start(session)
    block, problem = pruner.pose(session, state)
    assert 0 < block.size <= 12
    assert torch.equal(problem.incumbent, ~block.gather(state.mask))
    assert problem.value(problem.incumbent) == pytest.approx(0, abs=1e-12)
    solution = Swaps().solve(problem)
    after, outcome = pruner.step(session, state)
    assert torch.equal(~block.gather(after.mask), solution.assignment)
    assert outcome.predicted == pytest.approx(solution.value, rel=1e-4, abs=1e-9)


def test_layers_and_size_can_be_named() -> None:
    net = networks.mlp()
    network = Network(net.model)
    session = Session(network, net.task, Uniform().budget(network.shapes, 0.5, "layer"), 0)
    state = ONE_BLOCK.start(session)
    names = list(network.shapes)
    for name in names:
        block, problem = ONE_BLOCK.pose(session, state, [name], 6)
        assert list(block.indices) == [name]
        assert problem.size == 6
        assert int(problem.counts.sum()) == 3
    with pytest.raises(SecateurError, match="nothing to exchange in"):
        ONE_BLOCK.pose(session, state, names, 1)
    with pytest.raises(SecateurError, match="at least one weight"):
        ONE_BLOCK.pose(session, state, names, 0)
    assert Stage(block_size=1024, pruned=512).resized(32) == Stage(block_size=32, pruned=16)


# Commands.


def test_a_real_block_goes_out_and_an_answer_comes_back(capsys, tmp_path) -> None:
    words = ["export-block", "small.toml", "--size", "24", "--layer", "linear1", "--density", "0.3"]
    assert run([*words, "--out", "block.lp"]) == 0
    told = lines(capsys)
    for word in ("linear1 (24)", "variables", "block.lp holds the problem", "secateur solve block.lp"):
        assert word in told
    problem, indices = load_problem("block.lp"), load_indices("block.lp")
    assert problem.size == 24
    assert problem.value(problem.incumbent) == pytest.approx(0, abs=1e-9)
    # The weights are those of the recipe's network, pruned ones where the incumbent says so.
    assert list(indices) == ["linear1"]
    recipe = load("small.toml", {"density": 0.3})
    weights = dict(prepare(recipe).model.named_parameters())["linear1.weight"].detach().flatten()
    pruned = weights[indices["linear1"]][problem.incumbent].abs().max()
    assert pruned <= weights[indices["linear1"]][~problem.incumbent].abs().min()

    assert run(["solve", "block.lp"]) == 0
    told = lines(capsys)
    for word in ("incumbent", "found", "lower bound", "gap", "status", "work", "solver", "time"):
        assert word in told
    answer = json.loads((tmp_path / "block.answer.json").read_text())
    x = torch.tensor(answer["assignment"]).bool()
    assert problem.is_feasible(x)
    assert answer["value"] == problem.value(x) < answer["incumbent"]
    again = Solution.from_file(problem, "block.answer.json")
    assert again.value <= answer["value"]


@pytest.mark.parametrize(
    "words",
    [
        ["--solver", "annealing", "--restarts", "2"],
        ["--solver", "exhaustive"],
        ["--solver", "dimod", "--reads", "5", "--parameters.num_sweeps", "20"],
        ["--solver", "dimod", "--sampler", "openjij:SASampler", "--polished=1"],
        ["--solver", "simulated-bifurcation", "--steps", "50"],
    ],
    ids=lambda words: "-".join(words[1:4]),
)
def test_solvers_are_named_as_in_recipes(capsys, tmp_path, words) -> None:
    problem = fisher_problem(10, 4, [3, 2], seed=1)
    save_problem(problem, "block.npz")
    assert run(["solve", "block.npz", "--seed", "3", "--out", "mine.json", *words]) == 0
    assert "mine.json holds the answer" in lines(capsys)
    answer = json.loads((tmp_path / "mine.json").read_text())
    assert answer["solver"]["name"] == words[1]
    assert answer["seed"] == 3
    assert answer["value"] <= answer["incumbent"]
    if words[1] == "exhaustive":
        assert answer["status"] == "optimal"
        assert answer["value"] == pytest.approx(brute_force(problem)[1])
        assert answer["bound"] == pytest.approx(answer["value"])


def test_somebody_elses_answer_is_scored(capsys, tmp_path) -> None:
    problem = fisher_problem(12, 5, [6], seed=2)
    save_problem(problem, "block.lp")
    best, value = brute_force(problem)
    listing = "".join(f"x{i} 1\n" for i in torch.nonzero(best).flatten().tolist())
    (tmp_path / "theirs.sol").write_text(f"# Objective value = 0\n{listing}")
    assert run(["solve", "block.lp", "--answer", "theirs.sol"]) == 0
    assert "theirs.sol" in lines(capsys)
    answer = json.loads((tmp_path / "block.answer.json").read_text())
    assert answer["answer"] == "theirs.sol"
    assert answer["value"] == pytest.approx(value)


def test_mistakes_are_one_sentence(capsys, tmp_path) -> None:
    save_problem(fisher_problem(6, 3, [3]), "block.coo")
    (tmp_path / "short.json").write_text("[1, 0]")
    for words, expected in (
        (["solve"], "name one problem file"),
        (["solve", "a.lp", "b.lp"], "name one problem file"),
        (["solve", "none.lp"], "no problem file none.lp"),
        (["solve", "small.toml"], "ends in .lp, .coo, .ubqp or .npz"),
        (["solve", "block.coo", "--solver", "annealin"], "did you mean 'annealing'?"),
        (
            ["solve", "block.coo", "--solver", "annealing", "--restart", "2"],
            "did you mean 'solver.restarts'?",
        ),
        (["solve", "block.coo", "--solver", "annealing", "--restarts", "0"], "at least 1 restart"),
        (["solve", "block.coo", "--solver", "annealing", "--restarts"], "--restarts lacks a value"),
        (["solve", "block.coo", "--answer", "none.json"], "no answer file none.json"),
        (["solve", "block.coo", "--answer", "short.json"], "the problem has 6 variables"),
        (["solve", "block.coo", "--answer", "short.json", "--solver", "swaps"], "leave out --solver"),
        (["solve", "block.coo", "--out", "answer.txt"], "let --out end in .json"),
        (["solve", "block.coo", "--out", "block.json"], "side-car"),
        (["solve", "block.coo", "--seed", "one"], "one"),
        (["export-block"], "name one recipe"),
        (["export-block", "garmet"], "did you mean 'garment'?"),
        (["export-block", "small.toml", "--out", "block.mps"], "not 'block.mps'"),
        (["export-block", "small.toml", "--layer", "linear9"], "did you mean 'linear"),
        (["export-block", "small.toml", "--size", "0"], "at least one weight"),
        (["export-block", "small.toml", "--size", "1"], "nothing to exchange"),
        (["export-block", "small.toml", "--pruner", "one-shot"], "exchanges no blocks"),
        (["export-block", "small.toml", "--densty", "0.2"], "did you mean"),
    ):
        assert expected in said(capsys, *words), words
    (tmp_path / "block.json").unlink()
    assert "needs block.json beside it" in said(capsys, "solve", "block.coo")
