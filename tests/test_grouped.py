"""Layer-wise methods on convolutions in groups: each group is a linear layer over its own patches.

The truth is always found from torch.nn.functional.unfold, group by group.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import unfold

import secateur
from secateur import ICBS, DSnoT, GramSwaps, LeastSquares, OneShot, SparseGPT, prune
from secateur.allocation import Uniform
from secateur.capture import capture, moments
from secateur.core.block import Block
from secateur.core.layer import find_layers
from secateur.core.moments import Evidence, Moments
from secateur.core.ranks import as_rows
from secateur.curvature import Gram
from secateur.pruners import Batches, Network, Pruner, Session, Stage, Trust
from secateur.pruners.dsnot import grow_and_prune
from secateur.scores import RIA, Wanda
from secateur.solvers import Swaps
from secateur.tasks import Classification

SAMPLES, CLASSES = 20, 3
# Groups, outputs, and how the kernel goes over the inputs, [4, 6, 5].
SHAPES: dict[str, tuple[int, int, dict[str, Any]]] = {
    "two": (2, 6, {"kernel_size": 3, "padding": 1}),
    "two, apart": (2, 4, {"kernel_size": (2, 3), "stride": 2, "dilation": (2, 1)}),
    "depthwise": (4, 4, {"kernel_size": 3, "padding": 1, "stride": 2}),
    "depthwise, twice": (4, 8, {"kernel_size": 3}),
}
ALL = pytest.mark.parametrize("shape", SHAPES)
GROUPINGS = pytest.mark.parametrize("grouping", ["layer", "output"])


class Net(nn.Module):
    """A convolution in groups, and what makes classes of it."""

    def __init__(self, shape: str) -> None:
        super().__init__()
        groups, outs, settings = SHAPES[shape]
        self.conv = nn.Conv2d(4, outs, groups=groups, **settings)
        self.head = nn.Linear(outs, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.conv(x)).mean((2, 3)))


@dataclass
class Problem:
    """A network, its data, and what each group of the convolution is multiplied with, [g, in, positions]."""

    model: Net
    task: Classification
    weight: Tensor
    patches: Tensor

    @property
    def groups(self) -> list[tuple[slice, Tensor]]:
        """The outputs of each group, and its patches."""
        each = len(self.weight) // len(self.patches)
        return [(slice(g * each, (g + 1) * each), part) for g, part in enumerate(self.patches)]

    @property
    def rows(self) -> Iterator[tuple[int, Tensor]]:
        """Each output, and the patches that its weights are multiplied with."""
        for rows, part in self.groups:
            for row in range(rows.start, rows.stop):
                yield row, part

    def error(self, row: int, part: Tensor, mask: Tensor) -> float:
        """The squared error of an output over all positions of all samples."""
        return float((torch.where(mask, 0, self.weight[row]) @ part).square().sum())


def problem(shape: str, seed: int = 0) -> Problem:
    torch.manual_seed(seed)
    model = Net(shape).double().eval()
    x = torch.randn(SAMPLES, 4, 6, 5, dtype=torch.float64)
    x = x + x.roll(1, 3) + 0.5 * x.roll(1, 1) + 0.3  # inputs that are alike where they are near
    task = Classification.from_arrays(x, y := torch.randint(CLASSES, (SAMPLES,)), evaluation=(x, y), raw=True)
    conv = model.conv
    cut = {name: getattr(conv, name) for name in ("kernel_size", "dilation", "padding", "stride")}
    parts = [unfold(part, **cut).transpose(0, 1).flatten(1) for part in x.chunk(conv.groups, 1)]
    return Problem(model, task, conv.weight.detach().flatten(1).clone(), torch.stack(parts))


def pruned(of: Problem, pruner: Pruner, grouping: str, **more: Any) -> Tensor:
    """Prune the convolution alone, and give its mask."""
    settings = {"density": 0.4, "grouping": grouping, "include": ["conv"]} | more
    mask = prune(of.model, of.task, pruner, **settings).mask["conv"]
    rows = as_rows(mask, grouping)  # type: ignore[arg-type]
    if grouping != "input":
        assert (rows.sum(1) == round(0.4 * rows.shape[1])).all()
    assert not of.model.conv.weight.flatten(1)[~mask].any()
    return mask


def untouched(of: Problem, mask: Tensor) -> None:
    """Check that kept weights are what they were."""
    assert torch.equal(of.model.conv.weight.flatten(1), torch.where(mask, of.weight, 0))


@ALL
def test_scores_look_at_the_patches_of_a_weights_own_group(shape):
    of = problem(shape)
    layers = find_layers(of.model, include=["conv"])
    batch = of.task.batch("calibration", torch.arange(SAMPLES), torch.device("cpu"))
    evidence = Evidence(None, moments(of.model, of.task, batch.split(7), layers)["conv"])
    size, draw = of.weight.abs(), torch.Generator()
    norms = torch.stack([part.norm(dim=1) for _, part in of.rows])
    torch.testing.assert_close(Wanda().raw(of.weight, evidence, draw), size * norms)
    # A group is a layer of its own: its columns are its own outputs' weights.
    columns = torch.cat([size[rows] / size[rows].sum(0) for rows, _ in of.groups])
    truth = (size / size.sum(1, keepdim=True) + columns) * norms**0.7
    torch.testing.assert_close(RIA(power=0.7).raw(of.weight, evidence, draw), truth)


@ALL
@GROUPINGS
def test_gram_swaps_end_where_no_swap_within_a_row_improves(shape, grouping):
    of = problem(shape)
    start = pruned(problem(shape), OneShot(Wanda()), grouping)
    mask = pruned(of, GramSwaps(), grouping)
    untouched(of, mask)
    assert torch.equal(mask.sum(1), start.sum(1))
    assert not torch.equal(mask, start)
    for row, part in of.rows:
        now = of.error(row, part, mask[row])
        assert now <= of.error(row, part, start[row]) * (1 + 1e-12)
        kept, gone = (list(found.nonzero().flatten()) for found in (mask[row], ~mask[row]))
        for p, q in itertools.product(kept, gone):
            other = mask[row].clone()
            other[p], other[q] = False, True
            assert of.error(row, part, other) >= now * (1 - 1e-12)


class Rows(nn.Module):
    """A linear layer over the patches of one group."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.conv = nn.Linear(weight.shape[1], len(weight), bias=False, dtype=weight.dtype)
        self.head = nn.Linear(len(weight), CLASSES, dtype=weight.dtype)
        self.conv.weight.data = weight.clone()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean(1))


def alone(of: Problem, rows: slice, part: Tensor, pruner: Pruner, grouping: str, density: float) -> Any:
    """Prune a group as a linear layer: its mask and weights."""
    model = Rows(of.weight[rows])
    x = part.unflatten(1, (SAMPLES, -1)).permute(1, 2, 0).contiguous()
    y = torch.arange(SAMPLES) % CLASSES
    task = Classification.from_arrays(x, y, evaluation=(x, y), raw=True)
    run = prune(model, task, pruner, density=density, grouping=grouping, include=["conv"])
    return run.mask["conv"], model.conv.weight.detach()


@ALL
@GROUPINGS
@pytest.mark.parametrize("block", [5, 128])
def test_sparsegpt_prunes_each_group_as_a_linear_layer_of_its_own(shape, grouping, block):
    of = problem(shape)
    pruner = SparseGPT(block=block)
    mask = pruned(of, pruner, grouping)
    weight = of.model.conv.weight.detach().flatten(1)
    start = pruned(problem(shape), OneShot(Wanda()), grouping)
    for rows, part in of.groups:
        share = float(start[rows].float().mean())
        expected, values = alone(of, rows, part, pruner, grouping, share)
        assert mask[rows].sum() == start[rows].sum()
        assert torch.equal(mask[rows], expected)
        torch.testing.assert_close(weight[rows], values, rtol=1e-9, atol=1e-11)
    assert not torch.equal(weight, torch.where(mask, of.weight, 0))


def test_sparsegpt_keeps_the_counts_of_columns_that_groups_share():
    of = problem("two")
    mask = pruned(of, SparseGPT(), "input", density=0.5)
    assert (mask.sum(0) == 3).all()


@ALL
def test_dsnot_keeps_the_counts_of_rows_and_sees_a_group_as_a_linear_layer(shape):
    of = problem(shape)
    pruner = DSnoT(threshold=0.0)
    mask = pruned(of, pruner, "output")
    untouched(of, mask)
    truths = [alone(of, rows, part, pruner, "output", 0.4)[0] for rows, part in of.groups]
    assert torch.equal(mask, torch.cat(truths))
    start = pruned(problem(shape), OneShot(Wanda()), "layer")
    other = problem(shape)
    mask = pruned(other, pruner, "layer")
    assert torch.equal(mask.sum(1), start.sum(1))
    for rows, part in other.groups:
        truth = grow_and_prune(of.weight[rows], start[rows], Moments.of(part.T), threshold=0.0)
        assert torch.equal(mask[rows], truth)


@ALL
@GROUPINGS
@pytest.mark.parametrize("direct", [1024, 0])
def test_least_squares_satisfies_the_normal_equations_of_every_row(shape, grouping, direct):
    of = problem(shape)
    refit = LeastSquares(damping=0.02, direct=direct, iterations=2000, tolerance=1e-12)
    mask = pruned(of, OneShot(Wanda()), grouping, refit=refit)
    weight = of.model.conv.weight.detach().flatten(1)
    for row, part in of.rows:
        hessian = part @ part.T
        hessian.diagonal().add_(0.02 * hessian.diagonal().mean())
        kept = mask[row]
        left = ((weight[row] - of.weight[row]) @ hessian)[kept]
        assert float(left.norm()) <= 1e-9 * float((of.weight[row] @ hessian).norm())
        assert not torch.equal(weight[row][kept], of.weight[row][kept]) or not kept.any()


def dense_error(of: Problem, weight: Tensor) -> float:
    """Half the squared error of the outputs in a sample."""
    total = sum(((weight - of.weight)[rows] @ part).square().sum() for rows, part in of.groups)
    return float(total) / (2 * SAMPLES)


@ALL
def test_what_gram_matrices_predict_is_what_unfolding_measures(shape):
    of = problem(shape)
    layers = find_layers(of.model, include=["conv"])
    batch = of.task.batch("calibration", torch.arange(SAMPLES), torch.device("cpu"))
    tape = capture(of.model, of.task, batch, layers, Gram.needs, torch.Generator())
    draw = torch.Generator().manual_seed(0)
    now = 0.3 * torch.randn(of.weight.shape, generator=draw, dtype=torch.float64)
    apart = {"conv": now.clone()}
    linearisation = Gram().linearise_from(tape, apart.__getitem__)
    predicted = 0.0
    for _ in range(3):
        block = Block({"conv": torch.randperm(now.numel(), generator=draw)[:9]})
        delta = torch.randn(9, generator=draw, dtype=torch.float64)
        model = linearisation.quadratic(block)
        predicted += model.change(delta)
        linearisation.move(block, model, delta)
        now.view(-1)[block.indices["conv"]] += delta
    change = dense_error(of, of.weight + now) - dense_error(of, of.weight + apart["conv"])
    assert predicted == pytest.approx(change, rel=1e-10)
    measured = Gram().measured(tape, apart.__getitem__, {"conv": now}.__getitem__)
    assert measured == pytest.approx(change, rel=1e-10)
    gradient = torch.cat([now[rows] @ part @ part.T / SAMPLES for rows, part in of.groups])
    torch.testing.assert_close(linearisation.gradient("conv"), gradient)
    diagonal = torch.stack([part.square().sum(1) / SAMPLES for _, part in of.rows])
    torch.testing.assert_close(linearisation.diagonal("conv"), diagonal)


@ALL
@pytest.mark.parametrize("grouping", ["layer", "output", "input", "global"])
def test_blocks_on_gram_matrices_do_what_they_predict(shape, grouping):
    of = problem(shape)
    pruner = ICBS(
        init=Wanda(),
        curvature=Gram(),
        solver=Swaps(),
        stage=Stage(8, 16, multiplier=1.0),
        batches=Batches(size=SAMPLES, guard=0),
        trust=Trust(ridge=0.0, fraction=1.0),
        share=0.0,
    )
    network = Network(of.model, include=["conv"])
    session = Session(network, of.task, Uniform().budget(network.shapes, 0.5, grouping), 0)
    state, flips = pruner.start(session), 0
    for _ in range(4):
        before = torch.where(state.mask["conv"], of.weight, 0)
        state, outcome = pruner.step(session, state)
        after = torch.where(state.mask["conv"], of.weight, 0)
        change = dense_error(of, after) - dense_error(of, before)
        assert outcome.predicted == pytest.approx(outcome.measured, rel=1e-10, abs=1e-12)
        assert outcome.measured == pytest.approx(change, rel=1e-10, abs=1e-12)
        assert session.budget.is_met_by(state.mask)
        flips += sum(outcome.flips.values())
    assert flips > 0


@ALL
def test_sums_over_groups_add_up_whatever_the_passes(shape):
    """Two passes of unequal size give what one gives, for a layer-wise method as a whole."""
    masks = []
    for chunk in (None, 3):
        of = problem(shape)
        network = Network(of.model, include=["conv"])
        session = Session(network, of.task, Uniform().budget(network.shapes, 0.4, "output"), 0, chunk=chunk)
        state = SparseGPT().start(session)
        while not state.done:
            state, _ = SparseGPT().step(session, state)
        masks.append(state.mask)
    assert masks[0].same_as(masks[1])
    assert isinstance(masks[0], secateur.Mask)
