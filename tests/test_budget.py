"""Budgets, allocations and scores: exact counts in every group."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur import Classification, OneShot, prune
from secateur.allocation import ERK, Global, SpareOutput, Uniform
from secateur.core.budget import Budget, as_grouping
from secateur.core.errors import SecateurError
from secateur.core.layer import find_layers
from secateur.core.linear import LinearTape
from secateur.core.moments import Evidence
from secateur.core.score import relative_rank
from secateur.core.seeds import generator
from secateur.models import CNN
from secateur.pruners.best_mask import keep_best
from secateur.scores import Gradient, Magnitude, Random, Wanda

SHAPES = {"a": (6, 5), "b": (4, 6), "c": (3, 4)}
GROUPINGS = ["layer", "output", "input", "global"]
shapes = st.dictionaries(st.sampled_from("abcd"), st.tuples(st.integers(2, 9), st.integers(2, 9)), min_size=1)


def group_sizes(budget: Budget) -> torch.Tensor:
    """Count the weights of each group by asking for the group of each weight."""
    ids = torch.cat([budget.groups(n, torch.arange(o * i)) for n, (o, i) in budget.shapes.items()])
    return torch.bincount(ids, minlength=budget.kept.numel())


@given(
    shapes=shapes, density=st.floats(0.05, 0.95), grouping=st.sampled_from(GROUPINGS), seed=st.integers(0, 99)
)
@settings(max_examples=80, deadline=None)
def test_every_group_is_within_one_weight_and_the_mask_meets_it(shapes, density, grouping, seed):
    try:
        budget = Uniform().budget(shapes, density, grouping)
    except SecateurError:
        # Refused only where rounding leaves a group empty or prunes nothing at all.
        sizes = {"layer": [o * i for o, i in shapes.values()], "output": [i for _, i in shapes.values()]}
        sizes |= {"input": [o for o, _ in shapes.values()], "global": [sum(sizes["layer"])]}
        kept = [round(density * size) for size in sizes[grouping]]
        assert 0 in kept or kept == sizes[grouping]
        return
    sizes = group_sizes(budget)
    assert (budget.kept - density * sizes).abs().max() <= 0.5 + 1e-9
    draw = generator(seed, "scores")
    # Few distinct scores, so that ties must be broken, too.
    scores = {n: torch.randint(0, 3, s, generator=draw).float() for n, s in shapes.items()}
    mask = keep_best(scores, budget)
    assert budget.is_met_by(mask)
    for name, kept in mask.items():
        ids = budget.groups(name, torch.arange(kept.numel()))
        flat, score = kept.reshape(-1), scores[name].reshape(-1)
        for group in ids.unique():
            here = ids == group
            if grouping != "global" and flat[here].any() and not flat[here].all():
                assert score[here & flat].min() >= score[here & ~flat].max()


def test_erk_meets_the_density_and_keeps_small_layers_denser():
    budget = ERK().budget(SHAPES, 0.5, "layer")
    kept = dict(zip(SHAPES, budget.kept.tolist(), strict=True))
    assert abs(sum(kept.values()) - 0.5 * 66) <= 1.5
    assert kept["c"] / 12 > kept["b"] / 24 > kept["a"] / 30
    assert all(kept[n] <= o * i for n, (o, i) in SHAPES.items())


def test_erk_counts_kernels_as_published():
    """Densities in proportion to (in + out + height + width) / (in out height width), summed by hand."""
    shapes = {"a": (16, 8 * 9), "b": (32, 16 * 9), "c": (24, 9), "d": (10, 32)}  # c: depthwise
    kernels = {"a": (3, 3), "b": (3, 3), "c": (3, 3)}
    sums = {
        "a": 16 + 8 + 6,
        "b": 32 + 16 + 6,
        "c": 24 + 1 + 6,
        "d": 10 + 32,
    }  # densities times sizes, but for a factor
    budget = ERK().budget(shapes, 0.02, "layer", kernels)
    weights = sum(o * i for o, i in shapes.values())
    wanted = [0.02 * weights * part / sum(sums.values()) for part in sums.values()]
    assert all(abs(k - w) <= 0.5 for k, w in zip(budget.kept.tolist(), wanted, strict=True))


def test_erk_is_given_the_kernels_of_a_network():
    model = CNN(channels=3, widths=(6, 8), classes=4).build()
    x = torch.randn(12, 3, 8, 8, generator=generator(0, "pictures"))
    task = Classification.from_arrays(x, torch.arange(12) % 4)
    run = prune(model, task, OneShot(Magnitude()), density=0.3, allocation=ERK())
    found = find_layers(model)
    shapes = {layer.name: layer.shape for layer in found}
    kernels = {layer.name: tuple(layer.parameter.shape[2:]) for layer in found}
    by_hand = ERK().budget(shapes, 0.3, "layer", {n: k for n, k in kernels.items() if k})
    assert [int(run.mask[n].sum()) for n in shapes] == by_hand.kept.tolist()
    assert by_hand.kept.tolist() != ERK().budget(shapes, 0.3, "layer").kept.tolist()


def test_spare_output_keeps_the_last_layer_dense():
    budget = SpareOutput().budget(SHAPES, 0.5, "layer")
    assert budget.kept.tolist()[-1] == 12
    assert abs(int(budget.kept.sum()) - 33) <= 1


@pytest.mark.parametrize(
    ("allocate", "words"),
    [
        (lambda: SpareOutput().budget(SHAPES, 0.1, "layer"), "cannot spare the output layer 'c'"),
        (lambda: Global().budget(SHAPES, 0.5, "output"), 'set grouping = "global"'),
        (lambda: Uniform().budget(SHAPES, 0.01, "output"), "raise the density to at least"),
        (lambda: Uniform().budget({"a": (5, 2)}, 0.9, "output"), "prunes nothing"),
        (lambda: Uniform().budget({"a": (2, 2)}, 0.01, "global"), "keeps none"),
        (lambda: ERK().budget(SHAPES, 0.5, "global"), "unequal densities means nothing"),
        (lambda: as_grouping("outputs"), "did you mean 'output'"),
    ],
)
def test_what_cannot_be_met_is_said(allocate, words):
    with pytest.raises(SecateurError, match=words):
        allocate()


def test_published_rounding_of_the_garment_classifier():
    budget = Uniform().budget({"1": (512, 784), "2": (512, 512), "3": (10, 512)}, 0.1, "layer")
    assert budget.kept.tolist() == [40141, 26214, 512]


@pytest.mark.parametrize("ranking", ["layer", "output", "input"])
def test_relative_ranks_are_a_permutation_in_each_group(ranking):
    scores = torch.randn(4, 5, dtype=torch.float64)
    ranks = relative_rank(scores, ranking)
    grouped = {"layer": ranks.reshape(1, -1), "output": ranks, "input": ranks.T}[ranking]
    raw = {"layer": scores.reshape(1, -1), "output": scores, "input": scores.T}[ranking]
    size = grouped.shape[1]
    expected = (torch.arange(size, dtype=torch.float64) + 1) / size
    for ranked, row in zip(grouped, raw, strict=True):
        torch.testing.assert_close(ranked.sort()[0], expected)
        assert torch.equal(ranked.argsort(), row.argsort())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_ranks_are_distinct_however_coarse_the_scores(dtype):
    scores = torch.randn(2, 4096).to(dtype)
    for ranking in ("output", "layer"):
        ranks = relative_rank(scores, ranking)
        assert ranks.dtype == torch.float64
        for row in [ranks.reshape(-1)] if ranking == "layer" else ranks:
            assert row.unique().numel() == row.numel()
            assert row.max() == 1


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_the_best_of_each_group_are_kept_ties_by_position(grouping):
    budget = Uniform().budget(SHAPES, 0.5, grouping)
    scores = {n: torch.randint(0, 3, s, generator=generator(1, n)).float() for n, s in SHAPES.items()}
    mask = keep_best(scores, budget)
    ids = torch.cat([budget.groups(n, torch.arange(o * i)) for n, (o, i) in SHAPES.items()])
    flat = torch.cat([s.reshape(-1) for s in scores.values()])
    kept = torch.cat([m.reshape(-1) for m in mask.values()])
    for group, count in enumerate(budget.kept.tolist()):
        members = (ids == group).nonzero().squeeze(1)
        best = members[flat[members].argsort(descending=True, stable=True)[:count]]
        assert torch.equal(members[kept[members]], best.sort()[0])
    assert all(m.is_contiguous() for m in mask.values())  # descents write through flat views


def test_scores_are_their_formulas():
    draw = generator(0, "score")
    weight, x = torch.randn(3, 4), torch.randn(4, 7, 2)
    tape = LinearTape(x, torch.randn(3, 4), None)
    evidence, nothing = Evidence(tape.gradient, tape.moments), Evidence()
    torch.testing.assert_close(Magnitude()(weight, nothing, draw), weight.abs())
    torch.testing.assert_close(Gradient()(weight, evidence, draw), (weight * tape.gradient).abs())
    norms = x.permute(0, 1, 2).reshape(4, 14).square().sum(1).sqrt()
    torch.testing.assert_close(Wanda(ranking="global")(weight, evidence, draw), weight.abs() * norms)
    assert not torch.equal(Random()(weight, nothing, draw), Random()(weight, nothing, draw))
    again = [Random()(weight, nothing, generator(5, "score")) for _ in range(2)]
    assert torch.equal(*again)
