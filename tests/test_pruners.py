"""Pruners on tiny networks: exact counts, untouched weights, and a loss that falls."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from secateur import ICBS, Classification, LearnedMask, OneShot, SecateurError, prune
from secateur.allocation import ERK, Global, SpareOutput, Uniform
from secateur.core.limit import Limit
from secateur.core.seeds import generator
from secateur.curvature import EmpiricalFisher, Fisher, GaussNewton, Hessian, MeanGradient
from secateur.pruners import Averaging, Batches, Network, Session, Stage, Trust
from secateur.scores import Gradient, Magnitude, Random, Wanda
from secateur.selection import (
    AllLayers,
    Boundary,
    Fixed,
    GaussSouthwell,
    LargestGain,
    LogSize,
    RoundRobin,
    Tabu,
)
from secateur.solvers import Greedy, Swaps
from secateur.testing import networks

SMALL = ICBS(
    solver=Swaps(),
    stage=Stage(blocks=6, block_size=16, multiplier=1.0),
    batches=Batches(size=32),
    trust=Trust(fraction=1.0),  # else these small networks allow two flips a stage
    share=0.0,  # blocks alone
)
STEPWISE = replace(
    ICBS.published(), solver=Swaps(), stage=Stage(1, 16, 8, 0.75), batches=Batches(20, guard=0)
)
AVERAGED = ICBS(averaging=Averaging(length=3))
LEARNED = LearnedMask(averaging=Averaging(length=3, unit="first"))


def start_of(pruner, net, density=0.5, grouping="layer", allocation=None, seed=0):
    """Give the session and the first state of a run."""
    network = Network(net.model)
    budget = (allocation or Uniform()).budget(network.shapes, density, grouping)
    session = Session(network, net.task, budget, seed)
    return session, pruner.start(session)


@pytest.mark.parametrize("make", [networks.mlp, networks.shared_weight, networks.positions, networks.frozen])
@pytest.mark.parametrize(
    "pruner", [SMALL, STEPWISE, AVERAGED, LEARNED], ids=["stages", "published", "averaging", "learned"]
)
def test_kept_weights_are_the_trained_ones_bit_for_bit_and_nothing_else_changes(make, pruner):
    net = make()
    before = {k: v.clone() for k, v in net.model.state_dict().items()}
    run = prune(net.model, net.task, pruner, density=0.5, budget="4steps")
    after = net.model.state_dict()
    prunable = {f"{name}.weight": mask for name, mask in run.mask.items()}
    for key, value in before.items():
        # In a network with a shared weight the second use is the same tensor.
        mask = prunable.get(key, prunable.get("second.weight") if key == "third.weight" else None)
        expected = value if mask is None else torch.where(mask, value, torch.zeros_like(value))
        assert torch.equal(after[key], expected)
    for name, mask in run.mask.items():
        assert int(mask.sum()) == round(0.5 * mask.numel()), name


@pytest.mark.parametrize("grouping", ["layer", "output", "input", "global"])
@pytest.mark.parametrize(
    "pruner", [SMALL, STEPWISE, AVERAGED, LEARNED], ids=["stages", "published", "averaging", "learned"]
)
def test_every_step_conserves_every_group_and_is_logged_right(grouping, pruner):
    net = networks.mlp()
    session, state = start_of(pruner, net, grouping=grouping)
    assert session.budget.is_met_by(state.mask)
    for _ in range(5):
        after, outcome = pruner.step(session, state)
        assert session.budget.is_met_by(after.mask)
        changed = {n: int((m != after.mask[n]).sum()) for n, m in state.mask.items()}
        assert outcome.flips == {n: c for n, c in changed.items() if c}
        for layer in session.network.layers:
            written = torch.where(after.mask[layer.name], session.network.reference[layer.name], 0)
            assert torch.equal(layer.weight.detach(), written)
        state = after


@pytest.mark.parametrize("allocation", [Uniform(), SpareOutput(), ERK(), Global()], ids=repr)
@pytest.mark.parametrize(
    "score", [Random(), Magnitude(), Gradient(), Wanda(), Wanda(ranking="global")], ids=repr
)
def test_one_shot_meets_every_allocation(allocation, score):
    net = networks.mlp()
    run = prune(net.model, net.task, OneShot(score), density=0.6, allocation=allocation)
    assert run.report["density"]["overall"] == pytest.approx(0.6, abs=0.02)
    assert run.report["flips"] == 0
    assert run.report["reason"] == "complete"


CURVATURES = [EmpiricalFisher(), Fisher(), Fisher(draws=2), GaussNewton(), MeanGradient(), Hessian()]


@pytest.mark.parametrize("curvature", CURVATURES, ids=repr)
@pytest.mark.parametrize("order", [LogSize(), RoundRobin(), LargestGain(), AllLayers()], ids=repr)
def test_the_prediction_of_a_stage_is_the_quadratic_form_of_its_move(curvature, order):
    """Many blocks with the response carried predict what one look at the whole move predicts."""
    net = networks.mlp()
    pruner = replace(SMALL, curvature=curvature, order=order, trust=Trust(ridge=0.01, adapt=False))
    session, state = start_of(pruner, net)
    index, _, _ = pruner._samples(session, state)
    tape = session.record(session.batch(index), curvature.needs, state.step, curvature.draws)
    fresh = curvature.linearise(tape)
    everything = {n: torch.arange(m.numel()) for n, m in state.mask.items()}
    whole = fresh.quadratic(type_of_block(everything))
    after, outcome = pruner.step(session, state)
    reference = torch.cat([w.reshape(-1) for w in session.network.reference.values()])
    kept = [torch.cat([m.reshape(-1) for m in s.mask.values()]).double() for s in (state, after)]
    assert outcome.predicted == pytest.approx(whole.change(reference * (kept[1] - kept[0])), abs=1e-9)
    assert outcome.predicted <= 1e-9 or outcome.blocks > 0


def type_of_block(indices):
    """Make a block of everything."""
    from secateur.core.block import Block

    return Block(indices)


def test_only_the_block_changes_in_a_step():
    net = networks.mlp()
    session, state = start_of(STEPWISE, net)
    for _ in range(6):
        after, _ = STEPWISE.step(session, state)
        for name, stamps in after.stamps.items():
            in_block = stamps == after.turn
            assert int(in_block.sum()) <= 16
            assert not ((state.mask[name] != after.mask[name]) & ~in_block).any()
        assert sum(bool((s == after.turn).any()) for s in after.stamps.values()) <= 1
        state = after


def test_frozen_and_tabu_weights_never_change():
    net = networks.mlp()
    pruner = replace(STEPWISE, selector=Tabu(Fixed(Boundary(Gradient()), 0.5, 0.5), 0.3))
    session, state = start_of(pruner, net)
    first = state
    for _ in range(12):
        state, _ = pruner.step(session, state)
    for name, frozen in first.frozen.items():
        assert frozen.any()
        assert torch.equal(first.mask[name][frozen], state.mask[name][frozen])
        assert int((state.stamps[name] > 0)[frozen].sum()) == 0


@pytest.mark.parametrize("selector", [Fixed(GaussSouthwell(), 1.0, 1.0), Fixed(GaussSouthwell(), 0.0, 1.0)])
def test_where_everything_is_fixed_nothing_changes_and_the_run_says_so(selector):
    net = networks.mlp()
    run = prune(net.model, net.task, replace(SMALL, selector=selector), density=0.5, budget="3steps")
    assert run.report["flips"] == 0
    assert any("nothing to exchange" in notice for notice in run.report["notices"])


@pytest.mark.parametrize(("size", "pruned"), [(8, 0), (8, 8), (10_000, None), (2, 1), (1, 1)])
def test_extreme_blocks(size, pruned):
    net = networks.mlp()
    session, state = start_of(replace(SMALL, stage=Stage(3, size, pruned)), net)
    after, outcome = replace(SMALL, stage=Stage(3, size, pruned)).step(session, state)
    assert session.budget.is_met_by(after.mask)
    in_blocks = sum(int((stamps > 0).sum()) for stamps in after.stamps.values())
    total = sum(mask.numel() for mask in after.mask.values())
    if pruned in (0, size):  # nothing to exchange with
        assert (in_blocks, after.mask.flips(state.mask)) == (0, 0)
    else:
        assert in_blocks == total if size > total else 0 < in_blocks <= 3 * size
        assert outcome.predicted < 0 or size == 2


@pytest.mark.parametrize("refresh", [1, 2, 6])
def test_gains_are_predicted_anew_after_so_many_blocks(refresh, monkeypatch):
    asked, gain = [], GaussSouthwell.gain
    monkeypatch.setattr(
        GaussSouthwell, "gain", lambda self, view: (asked.append(view.name), gain(self, view))[1]
    )
    net = networks.mlp()
    pruner = replace(SMALL, stage=Stage(6, 8, multiplier=1.0, refresh=refresh))
    session, state = start_of(pruner, net)
    after, outcome = pruner.step(session, state)
    looks = len(asked) / len(session.network.layers)
    assert looks == -(-outcome.blocks // refresh)
    assert outcome.predicted < 0
    # By one look each weight is in one block at most, and the blocks are as large as ever.
    stamped = sum(int((stamps > 0).sum()) for stamps in after.stamps.values())
    assert stamped == 8 * outcome.blocks if refresh == 6 else stamped <= 8 * outcome.blocks


def trained_digits() -> tuple[nn.Module, Classification]:
    """Train a small perceptron on scikit-learn's digits."""
    from secateur.models import MLP, Trained
    from secateur.tasks import Digits

    task = Classification.from_source(Digits())
    return Trained(MLP((64, 32, 10)), epochs=8).build(task), task


@pytest.mark.parametrize(
    ("pruner", "steps", "factor"),
    [
        (ICBS(), "6steps", 0.6),
        (LearnedMask(), "6steps", 0.6),
        (ICBS(stage=Stage(blocks=8, block_size=128), share=0.0), "12steps", 0.7),
        (replace(ICBS.published(), solver=Greedy(), stage=Stage(1, 256, 128, 0.75)), "30steps", 0.95),
    ],
    ids=["averaging", "learned", "blocks", "published"],
)
def test_icbs_beats_its_start_and_the_other_scores_on_digits(pruner, steps, factor):
    losses = {}
    for name, method in (("icbs", pruner), ("magnitude", OneShot()), ("gradient", OneShot(Gradient()))):
        model, task = trained_digits()
        run = prune(model, task, method, density=0.2, budget=steps if name == "icbs" else None)
        losses[name] = run.report["evaluation"]["pruned"]["loss"]
    assert losses["icbs"] < factor * min(losses["magnitude"], losses["gradient"])


def test_the_same_seed_gives_the_same_mask_and_another_does_not():
    masks = []
    for seed in (1, 1, 2):
        net = networks.mlp(samples=200)
        masks.append(prune(net.model, net.task, SMALL, density=0.5, budget="5steps", seed=seed).mask)
    assert masks[0].same_as(masks[1])
    assert not masks[0].same_as(masks[2])


def test_a_failure_leaves_the_model_as_it_was():
    net = networks.mlp()
    before = {k: v.clone() for k, v in net.model.state_dict().items()}

    def fail(event):
        if event.kind == "stepped" and event.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prune(net.model, net.task, SMALL, density=0.5, budget="9steps", listeners=[fail])
    assert all(torch.equal(before[k], v) for k, v in net.model.state_dict().items())


def test_a_rejected_stage_is_undone_and_the_region_shrinks():
    net = networks.mlp()
    worse = replace(SMALL, trust=Trust(fraction=0.2))
    session, state = start_of(worse, net)
    session.mean_loss = lambda batch: 1e3  # every measurement says: worse
    after, outcome = worse.step(session, state)
    assert not outcome.accepted
    assert after.mask.same_as(state.mask)
    assert after.region.flips < state.region.flips
    assert after.region.ridge > state.region.ridge
    for layer in session.network.layers:
        written = torch.where(state.mask[layer.name], session.network.reference[layer.name], 0)
        assert torch.equal(layer.weight.detach(), written)


def test_a_stage_never_flips_more_than_the_region_allows():
    net = networks.mlp()
    pruner = replace(SMALL, trust=Trust(fraction=0.1))
    session, state = start_of(pruner, net)
    assert state.region.flips == int(0.1 * session.budget.kept.new_tensor([132]))
    after, _ = pruner.step(session, state)
    assert 0 < after.mask.flips(state.mask) <= state.region.flips


def test_trust_follows_predicted_against_measured():
    trust = Trust(ridge=0.1)
    region = trust.start(1000)
    assert trust.judge(region, -1.0, -0.5, 10) == region
    assert trust.judge(region, -1.0, -0.9, 10).flips > region.flips
    assert trust.judge(region, -1.0, -0.9, 10).ridge < region.ridge
    assert trust.judge(region, -1.0, -0.1, 10).flips == 5
    assert trust.judge(region, -1.0, 0.1, 10).flips == 2
    assert trust.judge(region, 0.0, 0.0, 0).ridge < region.ridge
    assert trust.judge(region, -1.0, float("nan"), 10).flips == 2
    fixed = Trust(adapt=False)
    assert fixed.judge(fixed.start(1000), -1.0, 5.0, 10) == fixed.start(1000)


def test_batches_cover_an_epoch_without_repetition():
    batches = Batches(size=10, guard=7)
    pool, guard = batches.split(60, seed=3)
    assert sorted(torch.cat([pool, guard]).tolist()) == list(range(60))
    cursor, seen = (0, 0), []
    for _ in range(5):
        index, cursor = batches.draw(pool, 3, cursor, 10)
        seen += index.tolist()
    assert len(set(seen)) == 50
    again, cursor = batches.draw(pool, 3, cursor, 10)
    assert cursor == (1, 10)
    assert set(again.tolist()) <= set(pool.tolist())
    assert torch.equal(again, batches.draw(pool, 3, (1, 0), 10)[0])


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: Batches(size=0), "at least 1"),
        (lambda: Batches(growth=0.5), "cannot shrink"),
        (lambda: Batches(guard=-1), "cannot be negative"),
        (lambda: Stage(blocks=0), "at least one block"),
        (lambda: Stage(block_size=8, pruned=9), "between 0 and block_size"),
        (lambda: Stage(multiplier=0.0), "must be positive"),
        (lambda: Stage(refresh=0), "after at least 1 block"),
        (lambda: Batches(largest=0), "largest batch"),
        (lambda: Trust(ridge=-1.0), "cannot be negative"),
        (lambda: Trust(fraction=0.0), r"\(0, 1\]"),
        (lambda: Trust(poor=0.9), "poor < good"),
    ],
)
def test_settings_out_of_range_are_refused(build, words):
    with pytest.raises(SecateurError, match=words):
        build()


def test_a_small_region_leaves_something_of_both_sides():
    assert Stage(4, 100, 10).shape(3) == (3, 1)
    assert Stage(4, 100, 90).shape(3) == (3, 2)
    assert Stage(4, 100, 0).shape(3) == (3, 0)
    assert Stage(4, 100, 100).shape(3) == (3, 3)
    assert Stage(4, 100).shape(1000) == (100, 50)


@pytest.mark.parametrize("guard", [None, 0])
@pytest.mark.parametrize("samples", [4, 200])
def test_a_run_without_a_budget_ends(guard, samples):
    """Four samples leave none for a guard set; with and without one, nothing goes on for ever."""
    net = networks.mlp(samples=samples + samples // 4)
    run = prune(net.model, net.task, replace(SMALL, batches=Batches(guard=guard)), density=0.5)
    assert run.report["reason"] == "converged"
    assert run.report["steps"] < 300


def test_a_ridge_far_too_large_is_relaxed():
    net = networks.mlp(samples=200)
    session, state = start_of(replace(SMALL, trust=Trust(ridge=1e4, fraction=1.0)), net)
    for _ in range(8):
        state, outcome = SMALL.step(session, state)
    assert state.mask.flips(state.start) > 0
    assert outcome.ridge < 1.0


def test_limits_are_read():
    assert Limit.parse("90s") == Limit(seconds=90.0)
    assert Limit.parse("1.5 min") == Limit(seconds=90.0)
    assert Limit.parse("500steps") == Limit(steps=500)
    assert Limit.parse(None) == Limit()
    for wrong in ("fast", "10", "-3s", "1.5steps", "0s", "0steps"):
        with pytest.raises(SecateurError, match="write for example 60s"):
            Limit.parse(wrong)


def test_random_draws_depend_on_purpose_and_step_only():
    a = torch.rand(3, generator=generator(1, "batch", 2))
    assert torch.equal(a, torch.rand(3, generator=generator(1, "batch", 2)))
    for other in (generator(2, "batch", 2), generator(1, "labels", 2), generator(1, "batch", 3)):
        assert not torch.equal(a, torch.rand(3, generator=other))


@pytest.mark.gpu
@pytest.mark.parametrize("pruner", [SMALL, STEPWISE], ids=["stages", "published"])
@pytest.mark.parametrize("grouping", ["layer", "output", "input", "global"])
def test_on_a_gpu_every_group_is_conserved_and_kept_weights_are_the_trained_ones(pruner, grouping):
    net = networks.mlp()
    model = net.model.to("cuda")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    run = prune(model, net.task, pruner, density=0.5, grouping=grouping, budget="4steps")
    for name, mask in run.mask.items():
        weight = before[f"{name}.weight"]
        assert mask.device.type == "cuda"
        assert torch.equal(model.state_dict()[f"{name}.weight"], torch.where(mask, weight, 0.0 * weight))
    # Each of the groups, of an odd number of weights too, has the budget's count.
    assert Uniform().budget(Network(model).shapes, 0.5, grouping).is_met_by(run.mask)
