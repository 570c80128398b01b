"""Averaged gradients: the formula, its invariances, and what the guard samples decide."""

import time
from dataclasses import dataclass, field, replace
from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur import ICBS, Classification, LearnedMask, SecateurError, prune
from secateur.allocation import Global, Uniform
from secateur.core.limit import Limit
from secateur.pruners import Averaging, Batches, Network, Session, Stage, State
from secateur.pruners.best_mask import keep_best
from secateur.runs.checkpoint import read_checkpoint, write_checkpoint
from secateur.runs.clock import Clock
from secateur.scores import Magnitude
from secateur.selection import Fixed, GaussSouthwell
from secateur.solvers import Swaps
from secateur.testing import networks

BATCHES = Batches(guard=10)


def session_of(net, density=0.5, grouping="layer", progress=None):
    """Give a session as a run would."""
    network = Network(net.model)
    allocation = Global() if grouping == "global" else Uniform()
    session = Session(network, net.task, allocation.budget(network.shapes, density, grouping), seed=0)
    if progress is not None:
        session.progress = progress
    return session


def begun(session, averaging):
    """Give the state before the first stage, the start by magnitude."""
    sizes = {name: weight.abs() for name, weight in session.network.reference.items()}
    mask = keep_best(sizes, session.budget)
    session.network.write(mask)
    scores, velocity = averaging.begin(session, BATCHES, mask, sizes, {})
    return State(mask, mask, mask, scores=scores, velocity=velocity)


def autograd(model, task, index, weights):
    """Differentiate the mean loss by plain autograd, at the weights given."""
    batch = task.batch("calibration", index, torch.device("cpu"))
    names = [f"{name}.weight" for name in weights]
    leaves = [weight.clone().requires_grad_(True) for weight in weights.values()]
    outputs = torch.func.functional_call(model, dict(zip(names, leaves, strict=True)), (batch.inputs,))
    loss = nn.functional.cross_entropy(outputs, batch.targets)
    return dict(zip(weights, torch.autograd.grad(loss, leaves), strict=True))


@pytest.mark.parametrize("grouping", ["layer", "output", "input", "global"])
@pytest.mark.parametrize("unit", ["batch", "first"])
@pytest.mark.parametrize("anneal", ["linear", "cosine", "constant"])
def test_a_stage_follows_the_formula(grouping, unit, anneal):
    """Recompute four mini-batches by plain autograd and sorting."""
    net = networks.mlp()
    averaging = Averaging(0.3, 0.7, 0.1, unit, anneal, samples=9, length=4)
    session = session_of(net, grouping=grouping, progress=lambda steps: 0.9 * steps)
    state = begun(session, averaging)
    pool, _ = BATCHES.split(net.task.size("calibration"), 0)
    draws, _ = BATCHES.draws(pool, 0, (0, 0), 9, 4)
    reference = session.network.reference
    rivals = [list(reference)] if grouping == "global" else [[name] for name in reference]

    def mean_size(tensors):
        return torch.cat([t.reshape(-1) for t in tensors]).abs().mean()

    scores = {}
    for names in rivals:
        size = mean_size([reference[n] for n in names])
        scores |= {n: reference[n].abs() / size for n in names}
    mask = state.mask
    if unit == "first":
        kept = {n: w * mask[n] for n, w in reference.items()}
        first = autograd(net.model, net.task, draws[0], kept)
        unit_size = mean_size([first[n] * w for n, w in reference.items()])
        scores = {n: s * unit_size for n, s in scores.items()}
    velocity = {n: torch.zeros_like(s) for n, s in scores.items()}
    for at, index in enumerate(draws):
        mask = keep_best(scores, session.budget)
        gradients = autograd(net.model, net.task, index, {n: w * mask[n] for n, w in reference.items()})
        h = 0.9 * at / 4
        h = {"linear": 1 - h, "cosine": (1 + torch.tensor(torch.pi * h).cos().item()) / 2, "constant": 1}[
            anneal
        ]
        for names in rivals:
            v = {n: gradients[n] * reference[n] for n in names}
            c = mean_size(list(v.values())) if unit == "batch" else 1.0
            for n in names:
                velocity[n] = 0.7 * velocity[n] + 0.3 * v[n] / c
                scores[n] = 0.9 * scores[n] - 0.3 * h * velocity[n]
    after, outcome = averaging.stage(session, state, BATCHES)
    for n in scores:
        assert torch.allclose(after.scores[n], scores[n], rtol=1e-5, atol=1e-9 if unit == "batch" else 1e-7)
        assert torch.allclose(after.velocity[n], velocity[n], rtol=1e-5, atol=1e-7)
    assert after.mask.same_as(keep_best(scores, session.budget))
    assert session.network.holds(after.mask)
    assert (outcome.samples, outcome.phase, outcome.predicted) == (36, "averaging", None)
    assert outcome.flips == after.mask.layer_flips(state.mask)


def test_the_mask_minimises_the_sum_of_the_linear_models():
    """Dual averaging, by brute force: no mask has a lower sum of models and proximal term."""
    net = networks.mlp()
    averaging = Averaging(0.2, 0.0, 0.0, "first", "constant", samples=9, length=5)
    session = session_of(net, density=0.15)
    state = begun(session, averaging)
    pool, _ = BATCHES.split(net.task.size("calibration"), 0)
    draws, _ = BATCHES.draws(pool, 0, (0, 0), 9, 5)
    name, kept = "4", int(state.mask["4"].sum())
    models = torch.zeros_like(state.scores[name])
    one, now = replace(averaging, length=1), state
    for index in draws:  # stage by stage, to see each mini-batch's mask
        weights = {n: w * now.mask[n] for n, w in session.network.reference.items()}
        models += autograd(net.model, net.task, index, weights)[name] * session.network.reference[name]
        now, _ = one.stage(session, now, BATCHES)
    slope = (0.2 * models - state.scores[name]).reshape(-1)
    best = min(combinations(range(slope.numel()), kept), key=lambda chosen: float(slope[list(chosen)].sum()))
    assert now.mask[name].reshape(-1).nonzero().squeeze(1).tolist() == list(best)


@dataclass(frozen=True)
class Scaled(Classification):
    """A task whose loss is in other units."""

    factor: float = 1.0

    def losses(self, outputs, targets):
        return self.factor * super().losses(outputs, targets)


@pytest.mark.parametrize("unit", ["batch", "first"])
@pytest.mark.parametrize("scale", [1e-3, 37.0])
def test_the_unit_of_the_loss_does_not_matter(unit, scale):
    """A loss in other units, a mean rather than a sum say, leads to the same masks."""
    masks = []
    for factor in (1.0, scale):
        net = networks.mlp()
        net = replace(net, task=Scaled(net.task.samples, factor))
        averaging = Averaging(length=5, unit=unit)
        session = session_of(net)
        masks.append(averaging.stage(session, begun(session, averaging), BATCHES)[0].mask)
    assert masks[0].same_as(masks[1])


@pytest.mark.gpu
def test_averaging_on_a_gpu_beats_its_start():
    net = networks.mlp(samples=200)
    run = prune(net.model.float().cuda(), net.task, ICBS(), density=0.3, budget="4steps")
    assert run.report["evaluation"]["pruned"]["loss"] < run.report["evaluation"]["start"]["loss"]


class Attention(nn.Module):
    """A network that averaging can prune and the tape cannot: it uses a weight outside its module."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(6, 2, batch_first=True)
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        return self.last(self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0])


@pytest.mark.parametrize(("share", "budget"), [(0.5, "6steps"), (1.0, None)])
def test_blocks_that_cannot_follow_cost_nothing_that_was_found(share, budget):
    net = networks.mlp(samples=200)
    pruner = ICBS(averaging=Averaging(length=3, horizon=9), share=share)
    run = prune(Attention().double(), net.task, pruner, density=0.5, budget=budget)
    assert any("no blocks follow" in notice for notice in run.report["notices"])
    assert run.mask.densities == {"attention.out_proj": 0.5, "last": 0.5}
    assert run.report["steps"] == 4  # three of averaging, and the one that could not be


@pytest.mark.parametrize("bound", [{"steps": 0}, {"steps": -1}, {"seconds": -1.0}, {"seconds": 0.0}])
def test_limits_that_are_none_are_refused(bound):
    with pytest.raises(SecateurError, match="positive number"):
        Limit(**bound)


def test_a_budget_that_fits_no_step_is_mentioned():
    net = networks.mlp()
    run = prune(net.model, net.task, ICBS(), density=0.5, budget="0.001s")
    assert run.report["steps"] == 0
    assert any("one-shot mask it starts from" in notice for notice in run.report["notices"])


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_frozen_weights_stay_as_they_were(share):
    net = networks.mlp(samples=200)
    pruner = ICBS(
        selector=Fixed(GaussSouthwell(), pruned=0.5, kept=0.5),
        averaging=Averaging(rate=1.0, length=5),
        share=share,
    )
    session = session_of(net, progress=lambda steps: steps / 6)
    state = start = pruner.start(session)
    for _ in range(6):
        state, _ = pruner.step(session, state)
    assert start.mask.flips(state.mask) > 0
    assert any(bool(frozen.any()) for frozen in start.frozen.values())
    for name, frozen in start.frozen.items():
        assert torch.equal(state.mask[name][frozen], start.mask[name][frozen])


def test_a_stage_does_not_change_the_state_it_was_given():
    net = networks.mlp()
    averaging = Averaging(length=3)
    session = session_of(net)
    state = begun(session, averaging)
    before = {name: tensor.clone() for name, tensor in state.tensors().items()}
    first, _ = averaging.stage(session, state, BATCHES)
    again, _ = averaging.stage(session, state, BATCHES)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.tensors().items())
    assert all(torch.equal(first.scores[name], again.scores[name]) for name in first.scores)


@pytest.mark.parametrize("pruner", [ICBS, LearnedMask])
def test_without_a_budget_the_horizon_ends_averaging(pruner):
    net = networks.mlp(samples=200)
    steps = []
    averaging = Averaging(horizon=12, length=4)
    run = prune(net.model, net.task, pruner(averaging=averaging), density=0.5, listeners=[steps.append])
    phases = [event.phase for event in steps if event.kind == "stepped"]
    assert run.report["reason"] == "converged"
    assert phases[:3] == ["averaging"] * 3
    assert set(phases[3:]) == ({"blocks"} if pruner is ICBS else set())


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(1, 8), st.integers(0, 3))
def test_batches_in_a_row_are_those_drawn_one_by_one(pool, size, count, seed):
    size = min(size, pool)
    samples, cursor = torch.arange(pool) * 3, (0, 0)
    together, end = Batches().draws(samples, seed, cursor, size, count)
    for batch in together:
        one, cursor = Batches().draw(samples, seed, cursor, size)
        assert torch.equal(one, batch)
        assert one.unique().numel() == size
    assert cursor == end


def test_the_clock_tells_the_share_of_the_budget_that_is_spent():
    clock = Clock(Limit(steps=8))
    assert [clock.progress(s) for s in (0.0, 2.0, 8.0)] == [0, 0.25, 1]
    assert Clock(Limit()).progress(3.0) is None
    clock = Clock(Limit(100.0), elapsed=40.0)
    clock.began, clock.reserve = 10.0, 30.0
    assert clock.progress(5.0) == pytest.approx(0.5, abs=0.01)
    clock.reserve = 95.0  # nothing is left to spend
    assert clock.progress(5.0) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [{"rate": 0.0}, {"rate": float("nan")}, {"momentum": 1.0}, {"forget": -0.1}, {"samples": 0},
     {"length": 0}, {"horizon": 0}],
    ids=str,
)  # fmt: skip
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(SecateurError, match=next(iter(wrong))):
        Averaging(**wrong)


@pytest.mark.parametrize("ranking", ["global", "output"])
def test_scores_have_the_width_of_the_weights(ranking):
    net = networks.mlp()
    session = session_of(replace(net, model=net.model.float()))
    state = ICBS(init=Magnitude(ranking)).start(session)
    assert {tensor.dtype for tensor in (*state.scores.values(), *state.velocity.values())} == {torch.float32}


def test_a_quarter_of_the_budget_averages_and_then_only_blocks_are_exchanged():
    net = networks.mlp(samples=200)
    steps = []
    pruner = ICBS(averaging=Averaging(length=4), share=0.25, stage=Stage(blocks=2, block_size=16))
    prune(net.model, net.task, pruner, density=0.5, budget="8steps", listeners=[steps.append])
    stepped = [event for event in steps if event.kind == "stepped"]
    assert [event.phase for event in stepped][:3] == ["averaging", "averaging", "blocks"]
    assert {event.phase for event in stepped[3:]} <= {"blocks"}
    assert stepped[0].samples == 4 * (128 // 16)


def test_blocks_begin_at_the_best_averaged_mask_and_averaging_is_over():
    net = networks.mlp(samples=200)
    spent = iter([0.1, 0.9, 0.1])
    session = session_of(net)
    pruner = ICBS(averaging=Averaging(length=2), share=0.5, stage=Stage(blocks=2, block_size=16))
    state = pruner.start(session)
    session.progress = lambda _: 0.1
    state, _ = pruner.step(session, state)
    best = pruner.start(session)  # somewhere else than the last mask
    state = replace(state, best=best.mask, best_guard=best.guard)
    session.progress = lambda _: next(spent)
    next(spent)
    moved, outcome = pruner.step(session, state)
    assert outcome.phase == "blocks"
    assert outcome.flips == moved.mask.layer_flips(state.best)
    assert moved.scores == {}
    again, outcome = pruner.step(session, moved)  # though the budget was raised
    assert outcome.phase == "blocks"
    assert again.exchanging


def test_the_rate_factor_slows_a_stage_down():
    net = networks.mlp()
    averaging = Averaging(length=1, momentum=0.0, forget=0.0)
    session = session_of(net)
    state = begun(session, averaging)
    moves = []
    for factor in (1.0, 0.25):
        after, _ = averaging.stage(session, replace(state, rate_factor=factor), BATCHES)
        moves.append(after.scores["0"] - state.scores["0"])
    assert torch.allclose(moves[1], 0.25 * moves[0])


def test_a_state_of_averaging_survives_a_file(tmp_path):
    net = networks.mlp(samples=200)
    session = session_of(net)
    averaging = Averaging(length=2)
    state, _ = averaging.stage(session, begun(session, averaging), BATCHES)
    state = replace(state, rate_factor=0.25, exchanging=True)
    write_checkpoint(tmp_path / "state", state, {})
    again, _ = read_checkpoint(tmp_path / "state", torch.device("cpu"))
    assert again.numbers() == state.numbers()
    assert again.tensors().keys() == state.tensors().keys()
    assert {"lowest/guard", "scores/0", "velocity/4"} <= again.tensors().keys()
    for name, tensor in state.tensors().items():
        assert torch.equal(tensor, again.tensors()[name])


def test_nothing_is_compiled_that_a_budget_leaves_no_use_for():
    solver = Noting()
    pruner = ICBS(solver=solver)
    pruner.warm_up(Limit(steps=3))
    assert solver.asked == []
    pruner.warm_up(Limit())
    replace(pruner, share=0.5).warm_up(Limit(steps=3))
    assert len(solver.asked) == 2


@dataclass(frozen=True)
class Noting(Swaps):
    """A solver that notes when it is asked to compile."""

    asked: list = field(default_factory=list)

    def warm_up(self, size=0):
        self.asked.append(size)
        return 0.0


def test_parts_that_the_budget_leaves_unused_are_mentioned():
    for pruner, said in ((ICBS(stage=Stage(blocks=3)), True), (ICBS(), False)):
        net = networks.mlp()
        run = prune(net.model, net.task, pruner, density=0.5, budget="1steps")
        assert any("no block is exchanged" in notice for notice in run.report["notices"]) is said


def test_the_first_checkpoint_knows_when_pruning_began(tmp_path):
    net = networks.mlp()

    def crash(event):
        if event.kind == "stepped":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(net.model, net.task, density=0.5, budget="50s", out=tmp_path / "run", listeners=[crash])
    _, facts = read_checkpoint(tmp_path / "run" / "state.safetensors", torch.device("cpu"))
    assert 0 < facts["began"] <= facts["elapsed"] + 0.1


@pytest.mark.parametrize("clocked", [True, False])
def test_a_long_stage_ends_by_the_clock_only_where_the_budget_does(clocked, monkeypatch):
    """A stage of a budget of steps must not depend on how fast the machine is."""
    monkeypatch.setattr("secateur.pruners.averaging._LONGEST", 0.0)
    session = session_of(networks.mlp())
    session.clocked = clocked
    averaging = Averaging(samples=5, length=4)
    _, outcome = averaging.stage(session, begun(session, averaging), BATCHES)
    assert outcome.samples == (5 if clocked else 20)


@pytest.mark.parametrize("length", [0.05, 0.2])
def test_a_slow_model_stops_within_its_budget(length):
    """Mini-batches that take long are not begun where they would not fit."""
    net = networks.mlp(samples=200)

    class Slow(nn.Sequential):
        def forward(self, x):
            time.sleep(length if torch.is_grad_enabled() else 0.0)
            return super().forward(x)

    session = session_of(replace(net, model=Slow(*net.model)))
    clock = Clock(Limit(1.5 * length))
    session.out_of_time, session.progress = clock.lacks, clock.progress
    averaging = Averaging(length=50)
    _, outcome = averaging.stage(session, begun(session, averaging), BATCHES)
    assert outcome.samples == 9  # of one mini-batch


def test_a_share_out_of_range_is_refused():
    with pytest.raises(SecateurError, match="share"):
        ICBS(share=1.5)
