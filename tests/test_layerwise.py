"""Layer-wise pruners and refits against slow exact formulas, and what a run promises of them."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur import OneShot, SecateurError, prune
from secateur.allocation import ERK, Uniform
from secateur.capture import moments
from secateur.core.budget import Budget
from secateur.core.moments import Moments
from secateur.core.ranks import as_rows, from_rows, mark_best
from secateur.pruners import ADMM, LeastSquares, Network, SequentialOneShot, Session, Site, SparseGPT, State
from secateur.pruners.calibration import calibration_samples
from secateur.pruners.damping import damped
from secateur.pruners.layerwise import Layerwise
from secateur.pruners.refits.least_squares import descend_rows, solve_rows
from secateur.pruners.sparsegpt import inverse_factor, sweep
from secateur.scores import Magnitude, Random, Wanda
from secateur.tasks import CausalLM
from secateur.testing import networks

DRAW = torch.Generator()


def problem(outs, ins, rows=40, seed=0, dead=()):
    """Give weights and the moments of correlated inputs."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(outs, ins, generator=draw, dtype=torch.float64)
    mix = torch.randn(ins, ins, generator=draw, dtype=torch.float64)
    x = torch.randn(rows, ins, generator=draw, dtype=torch.float64) @ mix
    x[:, list(dead)] = 0
    return weight, Moments.of(x, gram=True)


def counts_for(weight, grouping, density):
    budget = Budget.from_densities(grouping, {"l": tuple(weight.shape)}, {"l": density})
    return budget.kept


def site_of(weight, sums, grouping, kept):
    mask = from_rows(mark_best(as_rows(weight.abs(), grouping), kept), grouping, weight.shape)
    return Site("l", weight, sums, mask, grouping, kept)


def session_of(notices):
    net = networks.mlp()
    network = Network(net.model)
    budget = Uniform().budget(network.shapes, 0.5, "layer")
    return Session(network, net.task, budget, 0, notice=notices.append)


def surgeon(weight, hessian, grouping, kept, block):
    """Prune by the exact formulas: an inverse of the remaining matrix for every column and row."""
    weight, (outs, ins) = weight.clone(), weight.shape
    mask = torch.zeros(outs, ins, dtype=torch.bool)
    for begin in range(0, ins, block):
        end = min(ins, begin + block)
        diagonal = torch.stack([torch.linalg.inv(hessian[j:, j:])[0, 0] for j in range(begin, end)])
        scores = weight[:, begin:end] ** 2 / diagonal
        if grouping == "input":
            counts = kept[begin:end]
        else:
            counts = torch.tensor(
                [round(int(k) * end / ins + 1e-9) - round(int(k) * begin / ins + 1e-9) for k in kept]
            )
        best = mark_best(as_rows(scores, grouping), counts)
        mask[:, begin:end] = from_rows(best, grouping, scores.shape)
        for j in range(begin, end):
            inverse = torch.linalg.inv(hessian[j:, j:])
            for row in range(outs):
                if not mask[row, j]:
                    weight[row, j:] -= weight[row, j] / inverse[0, 0] * inverse[0]
    return mask, torch.where(mask, weight, 0)


@pytest.mark.parametrize("grouping", ["layer", "output", "input"])
@pytest.mark.parametrize(("block", "density"), [(1, 0.5), (4, 0.37), (5, 0.7), (128, 0.5)])
def test_sparsegpt_is_the_surgeon_with_an_inverse_for_every_column(grouping, block, density):
    weight, sums = problem(7, 13)
    kept = counts_for(weight, grouping, density)
    hessian = sums.gram + 0.01 * sums.gram.diagonal().mean() * torch.eye(13, dtype=torch.float64)
    expected, values = surgeon(weight, hessian, grouping, kept, block)
    mask, found = SparseGPT(block=block).prune_layer(
        session_of([]), site_of(weight, sums, grouping, kept), DRAW
    )
    assert torch.equal(mask, expected)
    torch.testing.assert_close(torch.where(mask, found, 0), values, rtol=1e-8, atol=1e-9)


def test_the_last_pruned_weight_of_a_row_is_made_up_for_in_the_best_way():
    """Where one weight is pruned, the rest is the least-squares solution for the columns behind it."""
    weight, sums = problem(1, 8)
    hessian, _ = damped(sums.gram, 0.01)
    mask, found = sweep(weight, inverse_factor(hessian), "output", torch.tensor([7]), 8)
    at = int((~mask[0]).nonzero())
    tail = slice(at + 1, 8)
    expected = weight[0, tail] + torch.linalg.solve(hessian[tail, tail], hessian[tail, at] * weight[0, at])
    torch.testing.assert_close(found[0, tail], expected)
    assert torch.equal(found[0, :at], weight[0, :at])


def test_the_factor_of_the_inverse():
    _, sums = problem(1, 9)
    hessian, _ = damped(sums.gram, 0.1)
    factor = inverse_factor(hessian)
    torch.testing.assert_close(factor.T @ factor, torch.linalg.inv(hessian))
    assert torch.equal(factor, factor.triu())


@settings(max_examples=60, deadline=None)
@given(
    outs=st.integers(1, 9),
    ins=st.integers(2, 17),
    density=st.floats(0.05, 0.95),
    grouping=st.sampled_from(["layer", "output", "input"]),
    block=st.sampled_from([1, 3, 8, 128]),
    dead=st.sets(st.integers(0, 16), max_size=16),
    rows=st.sampled_from([1, 5, 40]),
    seed=st.integers(0, 5),
)
def test_sparsegpt_keeps_exactly_what_each_group_may(outs, ins, density, grouping, block, dead, rows, seed):
    dead = {d for d in dead if d < ins}
    weight, sums = problem(outs, ins, rows, seed, dead)
    try:
        kept = counts_for(weight, grouping, density)
    except SecateurError:
        return
    before = weight.clone()
    mask, found = SparseGPT(block=block).prune_layer(
        session_of([]), site_of(weight, sums, grouping, kept), DRAW
    )
    assert torch.equal(as_rows(mask, grouping).sum(1), kept)
    assert torch.equal(weight, before)
    if found is not None:
        assert torch.isfinite(found).all()
        # Weights of dead inputs are kept as trained, and only where no others are left to keep.
        gone = sorted(dead)
        assert torch.equal(found[:, gone][mask[:, gone]], weight[:, gone][mask[:, gone]])
        if grouping == "output" and gone:
            assert not (mask[:, gone].any(1) & ~mask[:, sorted(set(range(ins)) - dead)].all(1)).any()


def output_error(weight, new, gram):
    """Give the sum of squares of the change of the outputs."""
    return float(((new - weight) @ gram * (new - weight)).sum())


@pytest.mark.parametrize("grouping", ["layer", "output", "input"])
def test_updates_make_the_error_smaller_than_the_mask_alone_and_smaller_than_wandas(grouping):
    weight, sums = problem(20, 40, rows=200)
    kept = counts_for(weight, grouping, 0.5)
    site = site_of(weight, sums, grouping, kept)
    mask, found = SparseGPT().prune_layer(session_of([]), site, DRAW)
    updated = output_error(weight, torch.where(mask, found, 0), sums.gram)
    assert updated < 0.9 * output_error(weight, torch.where(mask, weight, 0), sums.gram)
    wanda = from_rows(mark_best(as_rows(weight.abs() * sums.norms, grouping), kept), grouping, weight.shape)
    assert updated < output_error(weight, torch.where(wanda, weight, 0), sums.gram)
    # ... and the refit of the same mask is the best of all.
    refitted = solve_rows(matrix := damped(sums.gram, 1e-12)[0], mask, weight @ matrix)
    assert output_error(weight, refitted, sums.gram) < updated


def test_a_singular_gram_matrix_is_damped_further_and_that_is_said():
    weight, sums = problem(5, 12, rows=4)
    kept, notices = counts_for(weight, "output", 0.5), []
    mask, found = SparseGPT(damping=0.0).prune_layer(
        session_of(notices), site_of(weight, sums, "output", kept), DRAW
    )
    assert torch.isfinite(found).all()
    assert torch.equal(mask.sum(1), kept)
    assert notices == [
        "the Gram matrix of the inputs of layer 'l' is singular with damping 0: damping 1e-08 was used; give "
        "more calibration samples, or more damping."
    ]
    notices.clear()
    half = Moments(sums.count, sums.total.float(), sums.squares.float(), sums.gram.float())
    SparseGPT(damping=1e-9).prune_layer(
        session_of(notices), site_of(weight.float(), half, "output", kept), DRAW
    )
    assert len(notices) == 1
    assert "singular with damping 1e-09: damping 1e-0" in notices[0]  # what rounding to float32 hides


def test_damping_that_is_asked_for_is_used_where_it_is_enough():
    _, sums = problem(5, 12, rows=4)
    matrix, used = damped(sums.gram, 0.01)
    assert used == 0.01
    expected = sums.gram + 0.01 * sums.gram.diagonal().mean() * torch.eye(12, dtype=torch.float64)
    torch.testing.assert_close(matrix, expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, 12), st.integers(0, 99), st.floats(0, 1), st.integers(1, 40))
def test_the_refit_of_a_row_is_numpys_least_squares_solution(outs, ins, seed, density, rows):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, ins, generator=draw, dtype=torch.float64)
    weight = torch.randn(outs, ins, generator=draw, dtype=torch.float64)
    kept = torch.rand(outs, ins, generator=draw) < density
    ridge = 0.03
    matrix = x.T @ x + ridge * torch.eye(ins, dtype=torch.float64)
    found = solve_rows(matrix, kept, weight @ matrix)
    descended, left = descend_rows(matrix, kept, weight @ matrix, weight, 500, 1e-12)
    assert left <= 1e-12
    torch.testing.assert_close(descended, found, rtol=1e-6, atol=1e-7)
    for row in range(outs):
        at = kept[row].nonzero().flatten().numpy()
        # min |x_K v - x w0|^2 + ridge |v - w0_K|^2
        left_side = np.concatenate([x.numpy()[:, at], np.sqrt(ridge) * np.eye(len(at))])
        right = np.concatenate([x.numpy() @ weight[row].numpy(), np.sqrt(ridge) * weight[row].numpy()[at]])
        expected = np.zeros(ins)
        if len(at):
            expected[at] = np.linalg.lstsq(left_side, right, rcond=None)[0]
        np.testing.assert_allclose(found[row].numpy(), expected, rtol=1e-6, atol=1e-8)


def test_conjugate_gradients_never_make_a_row_worse():
    weight, sums = problem(6, 30, rows=20)
    matrix, _ = damped(sums.gram, 1e-6)
    kept = torch.rand(6, 30, generator=torch.Generator().manual_seed(0)) < 0.5
    before = torch.where(kept, weight, 0)
    errors = [((before - weight) @ matrix * (before - weight)).sum(1)]
    for iterations in range(1, 12):
        new, _ = descend_rows(matrix, kept, weight @ matrix, weight, iterations, 1e-15)
        errors.append(((new - weight) @ matrix * (new - weight)).sum(1))
    for worse, better in pairwise(errors):
        assert (better <= worse * (1 + 1e-9)).all()


class Residual(nn.Module):
    """A stack of residual layers, so that layer-wise methods have decoder layers to go through."""

    def __init__(self, width=8, depth=3):
        super().__init__()
        self.embed = nn.Linear(6, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 12), nn.Tanh(), nn.Linear(12, width)) for _ in range(depth)
        )
        self.head = nn.Linear(width, 4)

    def forward(self, x):
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


def residual(samples=200):
    return networks.furnish(Residual(), (6,), 0, samples)


PRUNERS = [
    SparseGPT(),
    SparseGPT(block=3, init=Magnitude()),
    SequentialOneShot(),
    SequentialOneShot(Random()),
]


CASES = [
    *[(residual, grouping, pruner) for grouping in ("layer", "output", "input") for pruner in PRUNERS],
    *[(make, "output", SparseGPT()) for make in (networks.mlp, networks.shared_weight, networks.positions)],
]


@pytest.mark.parametrize(("make", "grouping", "pruner"), CASES)
def test_a_run_meets_every_budget_and_reports_what_the_model_holds(make, grouping, pruner):
    net = make()
    biases = {k: v.clone() for k, v in net.model.state_dict().items() if k.endswith("bias")}
    before = {layer.name: layer.weight.clone() for layer in Network(net.model).layers}
    steps = []
    run = prune(net.model, net.task, pruner, density=0.5, grouping=grouping, listeners=[steps.append])
    network = Network(net.model)
    budget = Uniform().budget(network.shapes, 0.5, grouping)
    assert budget.is_met_by(run.mask)
    for layer in network.layers:
        assert not layer.weight[~run.mask[layer.name]].any()
        same = torch.equal(layer.weight, torch.where(run.mask[layer.name], before[layer.name], 0))
        assert same or pruner.updates
    assert all(torch.equal(net.model.state_dict()[k], v) for k, v in biases.items())
    assert run.report["reason"] == "complete"
    taken = [event for event in steps if type(event).__name__ == "Stepped"]
    assert (
        len(taken) == {residual: 5, networks.mlp: 3, networks.shared_weight: 3, networks.positions: 3}[make]
    )
    assert all(np.isfinite(event.loss) for event in taken)


def test_each_layer_sees_the_inputs_that_the_pruned_ones_before_pass_on():
    """The whole of a run done by hand, with whole passes."""
    net, by_hand = residual(), residual()
    run = prune(net.model, net.task, SparseGPT(samples=50), density=0.5, grouping="output")
    network = Network(by_hand.model)
    session = Session(network, by_hand.task, Uniform().budget(network.shapes, 0.5, "output"), 0)
    batch = session.batch(calibration_samples(session, 50))
    names = ["embed", *(f"blocks.{at}" for at in range(3)), "head"]
    for group in names:
        layers = [layer for layer in network.layers if layer.name.startswith(group)]
        sums = moments(by_hand.model, by_hand.task, [batch], layers, gram=True)
        for layer in layers:
            kept = counts_for(layer.weight, "output", 0.5)
            site = site_of(layer.weight.detach().clone(), sums[layer.name], "output", kept)
            mask, weight = SparseGPT().prune_layer(session, site, DRAW)
            with torch.no_grad():
                layer.weight.copy_(torch.where(mask, weight, 0))
    for ours, theirs in zip(net.model.parameters(), by_hand.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-10)
    assert run.mask.density == pytest.approx(0.5)


def test_a_score_of_inputs_sees_those_of_the_pruned_network():
    net, shot = residual(), residual()
    run = prune(net.model, net.task, SequentialOneShot(), density=0.5, grouping="output")
    other = prune(shot.model, shot.task, OneShot(Wanda()), density=0.5, grouping="output")
    assert run.report["flips"] > 0
    assert not run.mask.same_as(other.mask)
    by_magnitude = [
        prune(net.model, net.task, pruner, density=0.5).mask
        for net, pruner in ((residual(), SequentialOneShot(Magnitude())), (residual(), OneShot()))
    ]
    assert by_magnitude[0].same_as(by_magnitude[1])


@pytest.mark.parametrize("stop", [1, 2, 4])
@pytest.mark.parametrize("pruner", [SparseGPT(), SparseGPT(memory=8 * 144 / 2**30)], ids=["", "small memory"])
def test_a_run_that_was_stopped_goes_on_bit_for_bit(tmp_path, stop, pruner):
    whole = residual()
    expected = prune(whole.model, whole.task, pruner, density=0.4, refit=LeastSquares())
    first = residual()
    prune(first.model, first.task, pruner, density=0.4, budget=f"{stop}steps", out=tmp_path / "run")
    # The refit is part of a run's settings; here the run itself is compared.
    again = residual()
    run = prune(again.model, again.task, pruner, density=0.4, out=tmp_path / "run", resume=True)
    bare = residual()
    unbroken = prune(bare.model, bare.task, pruner, density=0.4)
    assert run.mask.same_as(unbroken.mask)
    assert run.mask.same_as(expected.mask)
    for ours, theirs in zip(again.model.parameters(), bare.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@dataclass(frozen=True)
class Late(SequentialOneShot):
    """Runs out of time after its first layers."""

    def prune_layer(self, session, site, draw):
        session.out_of_time = lambda seconds: True
        return super().prune_layer(session, site, draw)


def test_where_time_runs_out_within_a_decoder_layer_it_is_taken_up_there_again():
    net = residual()
    network = Network(net.model)
    session = Session(network, net.task, Uniform().budget(network.shapes, 0.5, "layer"), 0)
    state = Late().start(session)
    state, outcome = Late().step(session, state)  # of one layer: embed
    assert (state.turn, outcome.blocks) == (1, 1)
    state, outcome = Late().step(session, state)
    assert (state.turn, state.step, outcome.blocks, state.done) == (1, 2, 1, False)  # layers done
    assert session.budget.is_met_by(state.mask)
    assert network.holds(state.mask, state.weights)
    session.out_of_time = lambda seconds: False
    for _ in range(4):
        assert not state.done
        state, _ = SequentialOneShot().step(session, state)
    assert state.done
    fresh = residual()
    assert state.mask.same_as(prune(fresh.model, fresh.task, SequentialOneShot(), density=0.5).mask)


def test_a_run_goes_on_with_another_bound_on_memory():
    """Layers are counted, not groups, whose size follows from the bound."""
    net = residual()
    network = Network(net.model)
    session = Session(network, net.task, Uniform().budget(network.shapes, 0.5, "output"), 0)
    state, seen = SparseGPT().start(session), []
    for memory in (1e-9, 1e-9, 8.0, 1e-9, 8.0, 8.0, 8.0):
        fresh = State.rebuild(state.tensors(), state.numbers(), torch.device("cpu"))
        state, outcome = SparseGPT(memory=memory).step(session, fresh)
        seen.append(outcome.blocks)
    assert state.done
    assert seen == [1, 1, 1, 1, 1, 2, 1]
    assert session.budget.is_met_by(state.mask)


def test_a_bound_on_the_memory_of_a_run_divides_its_steps():
    net = residual()
    network = Network(net.model)
    budget = Uniform().budget(network.shapes, 0.5, "output")
    least = SparseGPT().records(Session(network, net.task, budget, 0), least=True)
    assert least == (3 + 4) * 8 * 12**2 + 128 * 8 * 8
    session = Session(network, net.task, budget, 0, room=128 * 8 * 8 + 100)
    state = SparseGPT().start(session)
    while not state.done:
        state, outcome = SparseGPT().step(session, state)
        assert outcome.blocks == 1
    assert state.step == len(network.layers)


def test_the_refit_lowers_the_error_of_every_layer_and_leaves_the_mask():
    net = residual()
    run = prune(net.model, net.task, SequentialOneShot(), density=0.5, refit=LeastSquares(damping=1e-6))
    for layer in Network(net.model).layers:
        assert not layer.weight[~run.mask[layer.name]].any()
    bare = residual()
    prune(bare.model, bare.task, SequentialOneShot(), density=0.5)
    trained = residual()
    batch = [trained.task.batch("calibration", torch.arange(100), torch.device("cpu"))]
    outputs = [m.task.forward(m.model, batch[0]) for m in (trained, bare, net)]
    assert (outputs[2] - outputs[0]).norm() < (outputs[1] - outputs[0]).norm()


@pytest.mark.parametrize("direct", [0, 1024])
def test_the_refit_is_done_with_inputs_from_refitted_layers(direct):
    net, by_hand = residual(), residual()
    refit = LeastSquares(target="layer", samples=60, direct=direct, tolerance=1e-12)
    prune(net.model, net.task, OneShot(), density=0.5, refit=refit)
    run = prune(by_hand.model, by_hand.task, OneShot(), density=0.5)
    network, trained = Network(by_hand.model), Network(residual().model)
    session = Session(network, by_hand.task, Uniform().budget(network.shapes, 0.5, "layer"), 0)
    batch = session.batch(calibration_samples(session, 60))
    for group in ["embed", *(f"blocks.{at}" for at in range(3)), "head"]:
        layers = [layer for layer in network.layers if layer.name.startswith(group)]
        sums = moments(by_hand.model, by_hand.task, [batch], layers, gram=True)
        for layer in layers:
            matrix, _ = damped(sums[layer.name].gram, 0.01)
            new = solve_rows(matrix, run.mask[layer.name], trained.reference[layer.name] @ matrix)
            with torch.no_grad():
                layer.weight.copy_(new)
    for ours, theirs in zip(net.model.parameters(), by_hand.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)


def input_of(model, name, task, batch):
    given = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda _, args: given.append(args[0]))
    task.forward(model, batch)
    hook.remove()
    return given[0].detach()


@pytest.mark.parametrize("direct", [0, 1024])
def test_the_refit_reproduces_the_outputs_of_the_trained_network(direct):
    net, by_hand, dense = residual(), residual(), residual()
    refit = LeastSquares(samples=60, direct=direct, tolerance=1e-12)
    prune(net.model, net.task, OneShot(), density=0.4, refit=refit)
    run = prune(by_hand.model, by_hand.task, OneShot(), density=0.4)
    network, trained = Network(by_hand.model), Network(dense.model)
    session = Session(network, by_hand.task, Uniform().budget(network.shapes, 0.4, "layer"), 0)
    batch = session.batch(calibration_samples(session, 60))
    for layer in network.layers:
        name = layer.name
        x0, x = (input_of(model, name, by_hand.task, batch) for model in (dense.model, by_hand.model))
        gram, weight, new = x.T @ x, trained.reference[name], torch.zeros(layer.shape, dtype=torch.float64)
        damping = 0.01 * gram.diagonal().mean()
        for row, kept in enumerate(run.mask[name]):
            right = (x.T @ (x0 @ weight[row]) + damping * weight[row])[kept]
            eye = torch.eye(len(right), dtype=torch.float64)
            new[row, kept] = torch.linalg.solve(gram[kept][:, kept] + damping * eye, right)
        with torch.no_grad():
            layer.weight.copy_(new)
    for ours, theirs in zip(net.model.parameters(), by_hand.model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-8)


def test_a_refit_without_time_leaves_the_weights_and_says_so():
    net = residual()
    network = Network(net.model)
    notices = []
    session = Session(
        network,
        net.task,
        Uniform().budget(network.shapes, 0.5, "layer"),
        0,
        lambda _: True,
        notice=notices.append,
    )
    assert LeastSquares()(session, network.dense_mask(), {})[1] == {}
    assert "ran out of time" in notices[0]


def test_a_refit_that_does_not_converge_says_so():
    net = residual()
    network = Network(net.model)
    notices = []
    session = Session(
        network, net.task, Uniform().budget(network.shapes, 0.5, "layer"), 0, notice=notices.append
    )
    mask, _ = session.one_shot(Magnitude(), torch.arange(20))
    LeastSquares(direct=0, iterations=1)(session, mask, {})
    assert any("after 1 iterations at a relative residual" in message for message in notices)


def test_half_precision_is_pruned_and_refitted():
    torch.manual_seed(0)
    net = residual()
    model = net.model.bfloat16()

    class Half(type(net.task)):
        def forward(self, model, batch):
            return model(batch.inputs.bfloat16()).float()

    task = net.task
    object.__setattr__(task, "__class__", Half)
    run = prune(model, task, SparseGPT(), density=0.5, grouping="output", refit=LeastSquares())
    assert all(p.dtype == torch.bfloat16 for p in model.parameters())
    assert run.mask.density == pytest.approx(0.5, abs=0.01)


def test_what_cannot_be_is_refused():
    net = residual()
    for kind in (SparseGPT, SequentialOneShot):
        with pytest.raises(SecateurError, match='use grouping = "layer" or "output"'):
            prune(net.model, net.task, kind(), density=0.5, grouping="global")
        with pytest.raises(SecateurError, match="samples is 9999, but there are only 160"):
            prune(net.model, net.task, kind(samples=9999), density=0.5)
        with pytest.raises(SecateurError, match="samples must be at least 1"):
            kind(samples=0)
        with pytest.raises(SecateurError, match="memory must be greater"):
            kind(memory=0.0)
    with pytest.raises(SecateurError, match="damping must be at least 0, not -1"):
        SparseGPT(damping=-1.0)
    with pytest.raises(SecateurError, match="damping must be at least 0, not nan"):
        LeastSquares(damping=float("nan"))
    with pytest.raises(SecateurError, match="block must be at least 1 column"):
        SparseGPT(block=0)
    for name, value in {"samples": 0, "memory": 0.0, "direct": -1, "iterations": 0, "tolerance": 0.0}.items():
        with pytest.raises(SecateurError, match=name):
            LeastSquares(**{name: value})
    assert issubclass(SparseGPT, Layerwise)


def test_unequal_densities_are_met():
    net = residual()
    run = prune(net.model, net.task, SparseGPT(), density=0.5, allocation=ERK())
    budget = ERK().budget(Network(net.model).shapes, 0.5, "layer")
    assert budget.is_met_by(run.mask)


def gpt2(transformers):
    config = transformers.GPT2Config(vocab_size=13, n_embd=8, n_layer=2, n_head=2, n_positions=16)
    return transformers.GPT2LMHeadModel(config)


def mixtral(transformers):
    config = transformers.MixtralConfig(
        vocab_size=13, hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4, num_experts_per_tok=1,
    )  # fmt: skip
    return transformers.MixtralForCausalLM(config)


@pytest.mark.parametrize("refit", [LeastSquares(), ADMM()], ids=["least squares", "ADMM"])
@pytest.mark.parametrize("make", [gpt2, mixtral])
def test_transposed_weights_and_experts_are_pruned_refitted_saved_and_taken_up_again(tmp_path, make, refit):
    transformers = pytest.importorskip("transformers")
    draw = torch.Generator().manual_seed(0)
    task = CausalLM.from_ids(torch.randint(13, (12, 9), generator=draw))

    def fresh():
        torch.manual_seed(0)
        return make(transformers).eval()

    whole, broken = fresh(), fresh()
    options = {"density": 0.5, "grouping": "output", "refit": refit}
    run = prune(whole, task, SparseGPT(), **options)
    assert run.report["density"]["overall"] == pytest.approx(0.5, abs=0.02)
    for layer in Network(whole, task.prunable(whole)).layers:
        assert not layer.weight[~run.mask[layer.name]].any()
    prune(broken, task, SparseGPT(), **options, budget="1steps", out=tmp_path / "run")
    again = fresh()
    resumed = prune(again, task, SparseGPT(), **options, out=tmp_path / "run", resume=True)
    assert resumed.mask.same_as(run.mask)
    for ours, theirs in zip(again.parameters(), whole.parameters(), strict=True):
        assert torch.equal(ours, theirs)
