"""Selection: blocks that hold what promises most, and nothing that must not change."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.core.budget import Budget
from secateur.core.curvature import Linearisation
from secateur.core.errors import SecateurError
from secateur.core.linear import LinearTape
from secateur.core.mask import Mask
from secateur.core.quadratic import QuadraticModel
from secateur.core.ranks import mark_best
from secateur.core.seeds import generator
from secateur.core.selector import LayerView
from secateur.scores import Gradient, Magnitude
from secateur.selection import (
    AllLayers,
    Boundary,
    Fixed,
    GaussSouthwell,
    LargestGain,
    LogSize,
    RoundRobin,
    Tabu,
    pick_pairs,
)
from secateur.selection.restrictions import most_recent

SHAPES = {"a": (4, 6), "b": (3, 5)}


class Constant(Linearisation):
    """A linearisation with a given gradient and curvature everywhere."""

    def __init__(self, gradient, diagonal):
        self._gradient, self._diagonal = gradient, diagonal

    def gradient(self, name):
        return self._gradient

    def diagonal(self, name):
        return self._diagonal

    def quadratic(self, block):
        raise AssertionError("a selector looks at whole layers")

    def move(self, block, model, delta):
        raise AssertionError("a selector moves nothing")


def view(mask, weight, frozen=None, stamps=None, gradient=None, diagonal=None, anchor=None, ridge=0.0):
    """Make a layer in the middle of a run."""
    zeros = torch.zeros_like(weight)
    return LayerView(
        name="a", reference=weight, mask=mask, anchor=mask if anchor is None else anchor,
        stamps=torch.zeros_like(mask, dtype=torch.int32) if stamps is None else stamps,
        frozen=torch.zeros_like(mask) if frozen is None else frozen,
        tape=LinearTape(torch.zeros(weight.shape[1], 1, 1), zeros, None),
        linearisation=Constant(*(zeros if v is None else v for v in (gradient, diagonal))),
        ridge=ridge, multiplier=1.0, generator=generator(0, "score"),
    )  # fmt: skip


def budget(grouping) -> Budget:
    """Make a budget whose counts do not matter here."""
    return Budget(grouping, SHAPES, torch.zeros(1, dtype=torch.int64))


@given(seed=st.integers(0, 9999), size=st.integers(0, 50), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_one_group_gives_the_published_rule(seed, size, share):
    draw = generator(seed, "gains")
    gains = {"a": torch.randn(4, 6, generator=draw)}
    mask = Mask({"a": torch.rand(4, 6, generator=draw) > 0.5})
    pruned = round(share * size)
    block = pick_pairs(gains, mask, budget("layer"), size, pruned).block
    kept = mask["a"].reshape(-1)
    flat = gains["a"].reshape(-1)
    if not kept.any() or kept.all() or pruned in (0, size):  # nothing to exchange with
        assert block.size == 0
        return
    truth = []
    for side, most in ((~kept, pruned), (kept, size - pruned)):
        places = side.nonzero().squeeze(1)
        truth.append(places[flat[places].argsort(descending=True)[:most]])
    expected = torch.cat(truth).sort()[0]
    found = block.indices.get("a", torch.empty(0, dtype=torch.int64))
    assert torch.equal(found, expected)


@given(seed=st.integers(0, 9999), grouping=st.sampled_from(["layer", "output", "input", "global"]))
@settings(max_examples=60, deadline=None)
def test_blocks_hold_no_weight_twice_none_forbidden_and_none_alone(seed, grouping):
    draw = generator(seed, "gains")
    gains = {n: torch.randn(s, generator=draw) for n, s in SHAPES.items()}
    for gain in gains.values():
        gain[torch.rand(gain.shape, generator=draw) < 0.3] = -torch.inf
    mask = Mask({n: torch.rand(s, generator=draw) > 0.5 for n, s in SHAPES.items()})
    limits = budget(grouping)
    block = pick_pairs(gains, mask, limits, 12, 6).block
    assert block.size <= 12
    for name, index in block.indices.items():
        assert torch.equal(index, index.unique())
        assert torch.isfinite(gains[name].reshape(-1)[index]).all()
    if block.size:
        open_groups = {}
        for name, gain in gains.items():
            allowed = torch.isfinite(gain).reshape(-1).nonzero().squeeze(1)
            for group, kept in zip(
                limits.groups(name, allowed).tolist(), mask[name].reshape(-1)[allowed].tolist(), strict=True
            ):
                open_groups.setdefault(group, set()).add(kept)
        for name, index in block.indices.items():
            assert all(len(open_groups[g]) == 2 for g in limits.groups(name, index).tolist())


def slow_rule(gains, mask, limits, size, pruned):
    """Rank whole groups, one weight at a time; give the block's positions and its promise."""
    ranked = ({}, {})
    for at, (name, gain) in enumerate(gains.items()):
        for position, (value, kept) in enumerate(
            zip(gain.reshape(-1).tolist(), mask[name].reshape(-1).tolist(), strict=True)
        ):
            if value > -float("inf"):
                group = int(limits.groups(name, torch.tensor([position])))
                ranked[kept].setdefault(group, []).append((-value, at, position))
    for side in ranked:
        for members in side.values():
            members.sort()
    chosen, promise = {name: [] for name in gains}, 0.0
    for kept, most in ((False, pruned), (True, size - pruned)):
        side, other = ranked[kept], ranked[not kept]
        worths = [
            (member[0] + other[group][min(rank, len(other[group]) - 1)][0], group, rank, *member[1:])
            for group, members in side.items()
            if group in other
            for rank, member in enumerate(members)
        ]
        taken = sorted(worths)[:most]
        for _, _, _, at, position in taken:
            chosen[list(gains)[at]].append(position)
        if not kept:
            promise = sum(max(-worth, 0.0) for worth, *_ in taken[: min(pruned, size - pruned)])
    return {name: sorted(index) for name, index in chosen.items() if index}, promise


@pytest.mark.parametrize("grouping", ["layer", "output", "input", "global"])
@given(
    seed=st.integers(0, 9999),
    shapes=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 40)), min_size=1, max_size=3),
    turned=st.booleans(),
    levels=st.sampled_from([1, 3, 1000]),
    size=st.integers(2, 60),
    share=st.floats(0, 1),
)
@settings(max_examples=60, deadline=None)
def test_pairs_follow_the_slow_rule(grouping, seed, shapes, turned, levels, size, share):
    draw = generator(seed, "gains")
    shapes = {f"l{at}": shape[::-1] if turned else shape for at, shape in enumerate(shapes)}
    # Whole numbers, so that ties abound where there are few levels and sums are exact.
    gains = {n: torch.randint(-levels, levels, s, generator=draw).float() for n, s in shapes.items()}
    for gain in gains.values():
        # One group may hold all that is good, so that it must be looked at to the bottom.
        gain[torch.rand(gain.shape, generator=draw) < 0.1] = -torch.inf
        gain[0] += 500 * (seed % 2)
    mask = Mask({n: torch.rand(s, generator=draw) > 0.4 for n, s in shapes.items()})
    limits = Budget(grouping, shapes, torch.zeros(1, dtype=torch.int64))
    pruned = min(max(round(share * size), 1), size - 1)
    pick = pick_pairs(gains, mask, limits, size, pruned)
    block, promise = slow_rule(gains, mask, limits, size, pruned)
    assert {n: index.tolist() for n, index in pick.block.indices.items()} == block
    assert pick.promise == promise


@pytest.mark.parametrize("grouping", ["layer", "output", "input", "global"])
@pytest.mark.parametrize("pruned", [0, 4])
def test_a_block_of_one_side_is_empty(grouping, pruned):
    mask = Mask({"a": torch.eye(4, 6) > 0})
    assert pick_pairs({"a": torch.ones(4, 6)}, mask, budget(grouping), 4, pruned).block.size == 0


def test_pairs_prefer_groups_in_which_both_sides_promise():
    # Row 0 has the best single gain but a hopeless partner; row 1 a good pair.
    gains = {"a": torch.tensor([[9.0, -50.0], [3.0, 3.0]])}
    mask = Mask({"a": torch.tensor([[False, True], [False, True]])})
    limits = Budget("output", {"a": (2, 2)}, torch.tensor([1, 1]))
    pick = pick_pairs(gains, mask, limits, 2, 1)
    assert pick.block.indices["a"].tolist() == [2, 3]
    assert pick.promise == pytest.approx(6.0)


def test_boundary_prefers_high_pruned_and_low_kept_scores():
    weight = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    mask = torch.tensor([[False, False], [True, True]])
    gain = Boundary(Magnitude()).gain(view(mask, weight))
    assert gain.tolist() == [[1.0, 2.0], [-3.0, -4.0]]


def test_boundary_scores_by_the_gradient_at_the_point_the_stage_has_come_to():
    weight, mask = torch.tensor([[2.0, 3.0]]), torch.tensor([[False, True]])
    gain = Boundary(Gradient()).gain(view(mask, weight, gradient=torch.tensor([[5.0, -7.0]])))
    assert gain.tolist() == [[10.0, -21.0]]


def test_gauss_southwell_is_the_decrease_by_a_single_flip():
    draw = generator(1, "case")
    weight, gradient, diagonal = (torch.randn(3, 4, generator=draw, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(3, 4, generator=draw) > 0.5
    anchor = torch.rand(3, 4, generator=draw) > 0.5
    gain = GaussSouthwell().gain(
        view(mask, weight, gradient=gradient, diagonal=diagonal, anchor=anchor, ridge=0.3)
    )
    for i in range(3):
        for j in range(4):
            one = QuadraticModel(gradient[i, j].reshape(1), dense=diagonal[i, j].reshape(1, 1))
            pruned = ~mask[i, j].reshape(1)
            problem = one.problem(
                weight[i, j].reshape(1), pruned, torch.zeros(1, dtype=torch.int64), 1.0, 0.3,
                ~anchor[i, j].reshape(1),
            )  # fmt: skip
            assert float(gain[i, j]) == pytest.approx(-problem.value(~pruned), abs=1e-12)


def test_the_rules_of_gauss_southwell_differ_in_the_curvature_they_use():
    draw = generator(2, "case")
    weight, gradient = (torch.randn(3, 4, generator=draw, dtype=torch.float64) for _ in range(2))
    diagonal = torch.rand(3, 4, generator=draw, dtype=torch.float64)
    here = view(torch.rand(3, 4, generator=draw) > 0.5, weight, gradient=gradient, diagonal=diagonal)
    step = torch.where(here.mask, -weight, weight)
    gains = {rule: GaussSouthwell(rule).gain(here) for rule in ("gradient", "diagonal", "lipschitz")}
    assert torch.allclose(gains["gradient"], -gradient * step)
    assert torch.allclose(gains["gradient"] - gains["diagonal"], 0.5 * diagonal * step.square())
    assert torch.allclose(gains["gradient"] - gains["lipschitz"], 0.5 * diagonal.max() * step.square())
    assert bool((gains["lipschitz"] <= gains["diagonal"]).all())  # the worse the bound, the less is promised


@pytest.mark.parametrize(("pruned", "kept"), [(0.0, 0.0), (1.0, 1.0), (0.5, 0.25), (0.0, 1.0)])
def test_fixed_freezes_exactly_the_surest(pruned, kept):
    scores = torch.tensor([[0.1, 0.9, 0.2, 0.8], [0.3, 0.7, 0.4, 0.6]])
    mask = scores > 0.5
    frozen = Fixed(Boundary(Magnitude()), pruned, kept).freeze(mask, scores)
    assert int((frozen & ~mask).sum()) == int(4 * pruned)
    assert int((frozen & mask).sum()) == int(4 * kept)
    if 0 < pruned < 1:
        assert scores[frozen & ~mask].max() < scores[~frozen & ~mask].min()
    if 0 < kept < 1:
        assert scores[frozen & mask].min() > scores[~frozen & mask].max()
    gain = Fixed(Boundary(Magnitude()), pruned, kept).gain(view(mask, scores, frozen=frozen))
    assert torch.equal(torch.isinf(gain), frozen)


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_tabu_holds_back_the_most_recent(fraction):
    stamps = torch.tensor([[0, 1, 2, 3], [4, 5, 0, 0]], dtype=torch.int32)
    frozen = torch.zeros(2, 4, dtype=torch.bool)
    frozen[1, 3] = True
    weight = torch.ones(2, 4)
    mask = torch.zeros(2, 4, dtype=torch.bool)
    gain = Tabu(Boundary(Magnitude()), fraction).gain(view(mask, weight, frozen=frozen, stamps=stamps))
    held = sorted(stamps[torch.isinf(gain)].tolist())
    assert held == {0.0: [], 0.5: [3, 4, 5], 1.0: [1, 2, 3, 4, 5]}[fraction]


def test_oldest_leave_first():
    stamps = torch.tensor([3, 1, 2, 0])
    assert most_recent(stamps, 2).tolist() == [True, False, True, False]
    assert most_recent(stamps, 0).tolist() == [False] * 4


@given(
    seed=st.integers(0, 9999),
    groups=st.integers(1, 4),
    width=st.integers(1, 60),
    levels=st.sampled_from([1, 2, 1000]),
)
@settings(max_examples=80, deadline=None)
def test_the_best_are_those_of_a_stable_sort(seed, groups, width, levels):
    draw = generator(seed, "values")
    values = torch.randint(0, levels, (groups, width), generator=draw).float()
    values[torch.rand(values.shape, generator=draw) < 0.1] = -torch.inf
    for counts in (
        torch.randint(0, width + 1, (groups,), generator=draw),
        torch.full((groups,), int(torch.randint(0, width // 8 + 1, (1,), generator=draw))),
    ):
        expected = torch.zeros_like(values, dtype=torch.bool)
        for row, order in enumerate(values.argsort(dim=1, descending=True, stable=True)):
            expected[row, order[: counts[row]]] = True
        assert torch.equal(mark_best(values, counts), expected)
    assert bool(mark_best(values, width + 1).all())
    assert not mark_best(values, 0).any()


def test_nan_is_best_as_in_a_sort():
    values = torch.tensor([[1.0, torch.nan, 3.0, torch.nan]])
    assert mark_best(values, 1).tolist() == [[False, True, False, False]]
    assert mark_best(values, 3).tolist() == [[False, True, True, True]]


def test_of_one_block_lower_positions_are_the_most_recent():
    stamps = torch.tensor([[1, 2, 2], [2, 0, 1]], dtype=torch.int32)
    assert most_recent(stamps, 2).tolist() == [[False, True, True], [False, False, False]]
    assert most_recent(stamps, 6).tolist() == [[True, True, True], [True, False, True]]


def test_one_idle_block_ends_a_stage_only_where_the_next_would_be_the_same():
    for order in (AllLayers(), LargestGain()):
        assert order.patience(3) == 1
        assert order.patience(3, remembers=True) == 3
    assert RoundRobin().patience(3) == LogSize().patience(3) == 3
    plain = Boundary(Magnitude())
    assert not Fixed(plain).remembers
    assert not Tabu(plain, 0.0).remembers
    assert Tabu(plain).remembers
    assert Fixed(Tabu(plain)).remembers


def test_orders():
    sizes = {"small": 10, "large": 1_000_000}
    draw = generator(0, "order")
    assert [RoundRobin().choose(sizes, t, draw, lambda _: 0.0)[0] for t in range(3)] == [
        "small",
        "large",
        "small",
    ]
    assert list(AllLayers().choose(sizes, 0, draw, lambda _: 0.0)) == ["small", "large"]
    assert LargestGain().choose(sizes, 0, draw, {"small": 2.0, "large": 1.0}.__getitem__) == ["small"]
    drawn = [LogSize().choose(sizes, 0, draw, lambda _: 0.0)[0] for _ in range(3000)]
    # log(11) / (log(11) + log(1,000,001)) = 0.148
    assert drawn.count("small") / 3000 == pytest.approx(0.148, abs=0.02)


@pytest.mark.parametrize(
    "build", [lambda s: Fixed(s, pruned=1.2), lambda s: Fixed(s, kept=-1.0), lambda s: Tabu(s, 2.0)]
)
def test_fractions_out_of_range_are_refused(build):
    with pytest.raises(SecateurError, match=r"must lie in \[0, 1\]"):
        build(Boundary(Magnitude()))
