"""Gram matrices: best swaps, DSnoT, RIA, and the curvature, against enumeration, loops and dense forms."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur import ICBS, OneShot, SecateurError, prune
from secateur.allocation import Uniform
from secateur.capture import capture, moments
from secateur.core.block import Block
from secateur.core.layer import find_layers
from secateur.core.matrices import symmetrised
from secateur.core.moments import Evidence, Moments
from secateur.core.seeds import generator
from secateur.curvature import Gram
from secateur.pruners import Batches, DSnoT, GramSwaps, Network, Session, Stage, Trust
from secateur.pruners.dsnot import grow_and_prune
from secateur.pruners.gram import best_swaps, row_errors, swaps_at_once
from secateur.scores import RIA, Magnitude, Wanda
from secateur.selection import Boundary
from secateur.solvers import Swaps
from secateur.tasks import CausalLM
from secateur.testing import networks

FOREVER = (2**62, lambda _: False)


def layer(seed, outs, ins, positions=None, dtype=torch.float64):
    """Draw weights, a mask and correlated inputs."""
    draw = generator(seed, "gram test")

    def normal(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    x = normal(positions or 3 * ins, ins) @ normal(ins, ins) + normal(1, ins)
    mask = torch.rand(outs, ins, generator=draw) < 0.5
    return normal(outs, ins).to(dtype), mask, x.to(dtype)


def swaps_of(row):
    """List the swaps of a row's mask."""
    return list(itertools.product(row.nonzero().flatten().tolist(), (~row).nonzero().flatten().tolist()))


def swapped(row, p, q):
    """Make a swap."""
    after = row.clone()
    after[p], after[q] = False, True
    return after


def error(w, row, gram):
    """Compute the error of one row by its definition."""
    d = torch.where(row, w, 0) - w
    return float(d @ gram @ d)


def descend(w, row, gram):
    """Descend by best swaps, each found by evaluating all of them afresh."""
    while True:
        now = error(w, row, gram)
        changes = {swap: error(w, swapped(row, *swap), gram) - now for swap in swaps_of(row)}
        best = min(changes, key=changes.__getitem__, default=None)
        if best is None or changes[best] > -1e-9 * max(1.0, now):
            return row
        row = swapped(row, *best)


def by_tensors(w, mask, gram, width):
    """Take the way of other devices."""
    return swaps_at_once(w, mask, symmetrised(gram), width, *FOREVER)


def by_kernel(w, mask, gram, width):
    """Take the way of the CPU."""
    return best_swaps(w, mask, gram, width=width)


WAYS = pytest.mark.parametrize("way", [by_kernel, by_tensors])


@WAYS
@pytest.mark.parametrize("seed", range(5))
def test_of_all_swaps_the_best_is_made_each_time(way, seed):
    w, mask, x = layer(seed, 6, 11)
    gram = x.T @ x
    truth = torch.stack([descend(w[o], mask[o], gram) for o in range(len(w))])
    found = way(w, mask, gram, 11)
    assert torch.equal(found, truth)
    assert not torch.equal(found, mask)


@WAYS
@given(
    seed=st.integers(0, 10_000),
    outs=st.integers(1, 5),
    ins=st.integers(1, 14),
    positions=st.integers(1, 30),
    width=st.sampled_from([1, 2, 5, 14]),
)
@settings(max_examples=40, deadline=None)
def test_no_improving_swap_is_left_counts_stay_and_no_row_is_worse(way, seed, outs, ins, positions, width):
    w, mask, x = layer(seed, outs, ins, positions)
    gram = x.T @ x
    found = way(w, mask, gram, min(width, ins))
    assert torch.equal(found.sum(1), mask.sum(1))
    before, after = row_errors(w, mask, gram), row_errors(w, found, gram)
    assert (after <= before * (1 + 1e-12)).all()
    for o in range(outs):
        scale = float(w[o].abs() @ gram.abs() @ w[o].abs())
        assert float(after[o]) == pytest.approx(error(w[o], found[o], gram), abs=1e-12 * scale)
        for swap in swaps_of(found[o]):
            assert error(w[o], swapped(found[o], *swap), gram) >= float(after[o]) - 1e-12 * scale


@WAYS
def test_a_narrow_search_ends_as_well_as_a_wide_one(way):
    w, mask, x = layer(0, 24, 160)
    gram = x.T @ x
    narrow, wide = way(w, mask, gram, 8), best_swaps(w, mask, gram, width=None)
    errors = [float(row_errors(w, m, gram).sum()) for m in (mask, narrow, wide)]
    assert errors[1] == pytest.approx(errors[2], rel=0.02)
    assert errors[2] < 0.5 * errors[0]


def test_single_precision_and_shapes_of_memory_do_not_matter():
    w, mask, x = layer(3, 40, 64)
    gram = x.T @ x
    truth = row_errors(w, best_swaps(w, mask, gram), gram)
    single = best_swaps(w.float(), mask, gram.float())
    assert float(row_errors(w, single, gram).sum()) == pytest.approx(float(truth.sum()), rel=0.01)
    strided = best_swaps(w.T.contiguous().T, mask.T.contiguous().T, gram.T)
    assert torch.equal(strided, best_swaps(w, mask, gram))
    half = best_swaps(w.bfloat16(), mask, gram.float())
    assert torch.equal(half.sum(1), mask.sum(1))


@pytest.mark.parametrize("kept", [True, False])
def test_rows_that_are_all_kept_or_all_pruned_stay(kept):
    w, _, x = layer(0, 3, 5)
    mask = torch.full((3, 5), kept)
    for way in (by_kernel, by_tensors):
        assert torch.equal(way(w, mask, x.T @ x, 5), mask)


def test_limit_and_clock_end_a_descent():
    w, mask, x = layer(0, 30, 20)
    gram = x.T @ x
    for one in (best_swaps(w, mask, gram, limit=1), swaps_at_once(w, mask, gram, 20, 1, lambda _: False)):
        assert int((one != mask).sum(1).max()) == 2
    assert torch.equal(best_swaps(w, mask, gram, out_of_time=lambda _: True), mask)
    assert torch.equal(swaps_at_once(w, mask, gram, 20, 99, lambda _: True), mask)


def test_what_cannot_be_used_is_refused():
    w, mask, x = layer(0, 3, 5)
    with pytest.raises(SecateurError, match="NaN or infinite"):
        best_swaps(w, mask, (x.T @ x).fill_(math.nan))
    with pytest.raises(SecateurError, match="at least 1"):
        best_swaps(w, mask, x.T @ x, width=0)
    for build in (lambda: GramSwaps(width=0), lambda: GramSwaps(swaps=0), lambda: DSnoT(cycles=0)):
        with pytest.raises(SecateurError, match="at least 1"):
            build()
    for build in (lambda: DSnoT(threshold=-1.0), lambda: RIA(power=-1.0)):
        with pytest.raises(SecateurError, match="at least 0"):
            build()


def slow_dsnot(w, mask, x, cycles, threshold):
    """Follow the paper's two equations, row by row and weight by weight."""
    mean, var, norms = x.mean(0), x.var(0, correction=0), x.norm(dim=0)
    mask = mask.clone()
    for r in range(len(w)):
        for _ in range(cycles):
            expected = sum(float(w[r, j] * mean[j]) for j in range(w.shape[1]) if not mask[r, j])
            if abs(expected) < threshold:
                break
            sign = math.copysign(1.0, expected)
            grow = {j: sign * float(w[r, j] * mean[j] / var[j]) for j in range(w.shape[1]) if not mask[r, j]}
            gone = {
                j: float(w[r, j].abs() * norms[j])
                for j in range(w.shape[1])
                if mask[r, j] and sign * float(w[r, j] * mean[j]) < 0
            }
            if not grow or not gone:
                break
            mask[r, max(grow, key=grow.__getitem__)] = True
            mask[r, min(gone, key=gone.__getitem__)] = False
    return mask


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("cycles", "threshold"), [(1, 0.0), (7, 0.0), (50, 0.1), (50, 3.0)])
def test_dsnot_is_what_a_loop_over_weights_makes_of_the_paper(seed, cycles, threshold):
    w, mask, x = layer(seed, 9, 16)
    found = grow_and_prune(w, mask, Moments.of(x), cycles, threshold)
    assert torch.equal(found, slow_dsnot(w, mask, x, cycles, threshold))
    assert torch.equal(found.sum(1), mask.sum(1))
    assert not torch.equal(found, mask)


def test_dsnot_lowers_the_expected_error():
    w, mask, x = layer(1, 50, 40)
    found = grow_and_prune(w, mask, Moments.of(x))
    before, after = ((torch.where(m, 0.0, w) @ x.mean(0)).abs().mean() for m in (mask, found))
    assert after < 0.5 * before


def test_dsnot_leaves_inputs_that_are_never_there_alone():
    w, mask, x = layer(1, 5, 8)
    assert torch.equal(grow_and_prune(w, mask, Moments.of(x[:0])), mask)
    assert torch.isfinite(Moments.of(x[:0]).variance).all()


def test_ria_is_its_formula():
    w, _, x = layer(2, 4, 6)
    w[:, 3] = 0.0
    sums = Moments.of(x)
    scores = RIA(power=0.7, ranking="global")(w, Evidence(moments=sums), generator(0, "score"))
    for i in range(4):
        for j in range(6):
            size = float(w[i, j].abs())
            column = float(w[:, j].abs().sum()) or 1.0
            share = size / float(w[i].abs().sum()) + size / column
            assert float(scores[i, j]) == pytest.approx(share * float(x[:, j].norm()) ** 0.7)


def test_ria_ranks_per_output_and_scores_an_expert_without_inputs():
    w, _, x = layer(2, 4, 6)
    ranks = RIA()(w, Evidence(moments=Moments.of(x)), generator(0, "score"))
    assert torch.equal(ranks.sort(1)[0], (torch.arange(1, 7).double() / 6).expand(4, 6))
    none = RIA(ranking="global")(w, Evidence(moments=Moments.of(x[:0])), generator(0, "score"))
    assert (none > 0).all()
    half = RIA(ranking="global")(w.bfloat16(), Evidence(moments=Moments.of(x.bfloat16())), generator(0, "s"))
    assert half.dtype == torch.float32


def test_ria_prunes_a_network():
    net = networks.mlp()
    run = prune(net.model, net.task, OneShot(RIA()), density=0.5, grouping="output")
    assert run.report["density"]["overall"] == pytest.approx(0.5, abs=0.05)


def taped(make, masks_seed=0, samples=11):
    """Record a tiny network, and give the displacement of a random mask."""
    net = make()
    layers = find_layers(net.model)
    batch = net.task.batch("calibration", torch.arange(samples), torch.device("cpu"))
    tape = capture(net.model, net.task, batch, layers, Gram().needs, generator(0, "labels"))
    draw = generator(masks_seed, "mask")
    apart = {
        layer.name: torch.where(torch.rand(layer.shape, generator=draw) < 0.5, 0, -layer.weight.detach())
        for layer in layers
    }
    return tape, layers, apart


def dense_error(tape, apart):
    """Compute half the squared error of all outputs in a sample, by outputs."""
    return sum(
        float(torch.einsum("oi,ist->ost", d, tape.layers[name].inputs).square().sum()) / (2 * tape.samples)
        for name, d in apart.items()
    )


@pytest.mark.parametrize("make", [networks.mlp, networks.positions, networks.shared_weight])
def test_the_gram_curvature_is_the_error_of_the_outputs(make):
    tape, layers, apart = taped(make)
    linearisation = Gram().linearise_from(tape, apart.__getitem__)
    whole = Block({layer.name: torch.arange(layer.size) for layer in layers})
    point = torch.cat([apart[layer.name].reshape(-1) for layer in layers])

    def truth(vector):
        pieces = {n: v.reshape(apart[n].shape) for n, v in whole.split(vector).items()}
        return sum(
            torch.einsum("oi,ist->ost", d, tape.layers[n].inputs).square().sum() / (2 * tape.samples)
            for n, d in pieces.items()
        )

    model = linearisation.quadratic(whole)
    torch.testing.assert_close(model.gradient, torch.func.grad(truth)(point))
    torch.testing.assert_close(model.dense, torch.func.hessian(truth)(point))
    for matrices in (linearisation.gradient, linearisation.diagonal):
        flat = torch.cat([matrices(layer.name).reshape(-1) for layer in layers])
        expected = model.gradient if matrices == linearisation.gradient else model.dense.diagonal()
        torch.testing.assert_close(flat, expected)


def test_moves_predictions_and_measurements_agree():
    tape, layers, apart = taped(networks.positions)
    linearisation = Gram().linearise_from(tape, apart.__getitem__)
    now = {name: d.clone() for name, d in apart.items()}
    predicted = 0.0
    for seed in range(5):
        draw = generator(seed, "block")
        block = Block({layer.name: torch.randperm(layer.size, generator=draw)[:7] for layer in layers})
        delta = torch.randn(block.size, dtype=torch.float64, generator=draw)
        model = linearisation.quadratic(block)
        predicted += model.change(delta)
        linearisation.move(block, model, delta)
        for name, piece in block.split(delta).items():
            now[name].view(-1)[block.indices[name]] += piece
        fresh = Gram().linearise_from(tape, now.__getitem__)
        for layer in layers:
            torch.testing.assert_close(linearisation.gradient(layer.name), fresh.gradient(layer.name))
    measured = Gram().measured(tape, apart.__getitem__, now.__getitem__)
    assert predicted == pytest.approx(measured, rel=1e-12)
    assert measured == pytest.approx(dense_error(tape, now) - dense_error(tape, apart), rel=1e-9)


ON_GRAM = ICBS(
    init=Wanda(), curvature=Gram(), solver=Swaps(), stage=Stage(8, 16, multiplier=1.0),
    batches=Batches(size=32, guard=0), trust=Trust(ridge=0.0, fraction=1.0), share=0.0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("grouping", "adapt"),
    [("output", True), ("output", False), ("layer", True), ("input", True), ("global", True)],
)
def test_blocks_on_gram_matrices_do_what_they_predict(grouping, adapt):
    net = networks.positions()
    pruner = replace(ON_GRAM, trust=Trust(ridge=0.0, fraction=1.0, adapt=adapt))
    network = Network(net.model)
    session = Session(network, net.task, Uniform().budget(network.shapes, 0.5, grouping), 0)
    state, flips = pruner.start(session), 0
    for _ in range(4):
        state, outcome = pruner.step(session, state)
        assert outcome.accepted
        assert outcome.predicted == pytest.approx(outcome.measured, rel=1e-9, abs=1e-12)
        assert session.budget.is_met_by(state.mask)
        flips += sum(outcome.flips.values())
        assert (outcome.predicted < 0) == bool(outcome.flips)
    assert flips > 0


def test_blocks_on_gram_matrices_in_single_precision_and_with_other_selectors():
    net = networks.mlp()
    pruner = replace(ON_GRAM, selector=Boundary(Magnitude()))
    net.model.float()
    task = type(net.task).from_arrays(
        net.task.batch("calibration", torch.arange(40), torch.device("cpu")).inputs.float(),
        net.task.batch("calibration", torch.arange(40), torch.device("cpu")).targets,
    )
    run = prune(net.model, task, pruner, density=0.5, grouping="output", budget="3steps")
    assert run.report["density"]["overall"] == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize("grouping", ["output", "layer"])
@pytest.mark.parametrize("make", [networks.mlp, networks.positions])
def test_gram_swaps_leave_no_improving_swap_in_any_layer(grouping, make):
    net = make()
    reference = {layer.name: layer.weight.detach().clone() for layer in find_layers(net.model)}
    run = prune(net.model, net.task, GramSwaps(), density=0.5, grouping=grouping)
    for layer in find_layers(net.model):
        kept = torch.where(run.mask[layer.name], reference[layer.name], 0)
        assert torch.equal(layer.weight.detach(), kept)
    index = torch.arange(net.task.size("calibration"))
    batches = [net.task.batch("calibration", index, torch.device("cpu"))]
    sums = moments(net.model, net.task, batches, find_layers(net.model), gram=True)
    for name, w in reference.items():
        again = best_swaps(w, run.mask[name], sums[name].gram)
        assert torch.equal(again, run.mask[name]), name


@pytest.mark.parametrize("pruner", [GramSwaps(), DSnoT()], ids=lambda p: p.part_name)
def test_exchanges_within_rows_refuse_columns_and_one_group_for_all(pruner):
    for grouping, words in (("input", "output rows"), ("global", "cannot share one count")):
        net = networks.mlp()
        with pytest.raises(SecateurError, match=words):
            prune(net.model, net.task, pruner, density=0.5, grouping=grouping)


@pytest.fixture
def llama():
    """Give a tiny Llama with random weights, and text that it has not seen."""
    transformers = pytest.importorskip("transformers", reason="pip install 'secateur[hf]'")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=32,
    )  # fmt: skip
    ids = torch.randint(0, 40, (40, 12), generator=generator(0, "ids"))
    return transformers.LlamaForCausalLM(config).eval(), CausalLM.from_ids(ids)


@pytest.mark.parametrize(
    ("pruner", "grouping"),
    [(GramSwaps(), "output"), (GramSwaps(), "layer"), (DSnoT(threshold=0.0), "output")],
    ids=["swaps", "swaps-layer", "dsnot"],
)
def test_a_llama_is_pruned(llama, pruner, grouping):
    model, task = llama
    before = {k: v.clone() for k, v in model.state_dict().items()}
    run = prune(model, task, pruner, density=0.5, grouping=grouping)
    assert run.report["density"]["overall"] == pytest.approx(0.5, abs=0.01)
    assert len(run.mask) == 14
    assert run.report["flips"] > 0
    for name, mask in run.mask.items():
        kept = torch.where(mask, before[f"{name}.weight"], 0)
        assert torch.equal(model.state_dict()[f"{name}.weight"], kept)
        if grouping == "output":
            assert len(mask.sum(1).unique()) == 1


def test_a_llama_is_pruned_in_blocks_on_gram_matrices(llama):
    model, task = llama
    pruner = replace(ON_GRAM, batches=Batches(size=16, guard=0))
    run = prune(model, task, pruner, density=0.5, grouping="output", budget="3steps")
    assert run.report["flips"] > 0


@pytest.mark.gpu
def test_on_a_gpu_swaps_end_as_well_as_on_the_cpu():
    w, mask, x = layer(0, 64, 200, dtype=torch.float32)
    gram = x.T @ x
    there = best_swaps(w.cuda(), mask.cuda(), gram.cuda())
    assert there.device.type == "cuda"
    here = best_swaps(w, mask, gram)
    assert torch.equal(there.sum(1).cpu(), mask.sum(1))
    errors = [float(row_errors(w, m.cpu(), gram).sum()) for m in (here, there)]
    assert errors[1] == pytest.approx(errors[0], rel=0.02)
    for row in there[:4].cpu(), here[:4]:
        assert torch.equal(best_swaps(w[:4], row, gram), row)
