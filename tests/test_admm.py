"""ADMM over weights and mask: against brute force, and what a run promises of a refit that moves the mask."""

from itertools import combinations, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from secateur import ADMM, ICBS, GradientSteps, LeastSquares, Mask, OneShot, SecateurError, Successive, prune
from secateur.allocation import Global, Uniform
from secateur.core.ranks import as_rows, count_rows, from_rows, mark_best
from secateur.export.outcome import apply_outcome
from secateur.pruners import Network, Session, SparseGPT
from secateur.pruners.refits.admm import best_support, without_dead
from secateur.pruners.refits.least_squares import solve_rows
from secateur.scores import Magnitude, Wanda
from secateur.testing import networks

GROUPINGS = ("layer", "output", "input")


def problem(outs, ins, seed, density=0.4, grouping="layer", rows=60):
    """Give H and b of correlated inputs, the weights, and the mask of magnitude."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(outs, ins, generator=draw, dtype=torch.float64)
    x = torch.randn(rows, ins, generator=draw, dtype=torch.float64)
    x = x @ torch.randn(ins, ins, generator=draw, dtype=torch.float64)
    matrix = x.T @ x + 1e-3 * torch.eye(ins, dtype=torch.float64)
    size = as_rows(weight, grouping).shape[1]
    best = mark_best(as_rows(weight.abs(), grouping), max(1, round(density * size)))
    return matrix, weight @ matrix, weight, from_rows(best, grouping, weight.shape)


def error(matrix, target, weight, kept):
    """Give the squared error of the outputs, the weights that are kept being the best there are."""
    found = solve_rows(matrix, kept, target)
    return float((((found - weight) @ matrix) * (found - weight)).sum())


def best_of_all(matrix, target, weight, kept):
    """Give the smallest error of any mask with the count of a layer."""
    outs, ins = kept.shape
    # Rows are independent but for the count: the best error of each row with each count ...
    rows = [
        [
            min(
                error(matrix, target[row : row + 1], weight[row : row + 1], only(ins, chosen))
                for chosen in combinations(range(ins), count)
            )
            for count in range(ins + 1)
        ]
        for row in range(outs)
    ]
    # ... and all ways to share the count out.
    shares = (s for s in product(range(ins + 1), repeat=outs) if sum(s) == int(kept.sum()))
    return min(sum(errors[count] for errors, count in zip(rows, share, strict=True)) for share in shares)


def only(ins, chosen):
    kept = torch.zeros(1, ins, dtype=torch.bool)
    kept[0, list(chosen)] = True
    return kept


@pytest.mark.parametrize("density", [0.3, 0.5])
def test_small_layers_come_close_to_the_best_mask_there_is(density):
    """By brute force; magnitude's masks are several times as far from it, with the same least squares."""
    found, first, best = 0.0, 0.0, 0.0
    for seed in range(6):
        matrix, target, weight, kept = problem(3, 6, seed, density)
        mask = best_support(matrix, target, weight, kept, "layer")[0]
        scale = float(((weight @ matrix) * weight).sum())
        least = best_of_all(matrix, target, weight, kept)
        assert error(matrix, target, weight, mask) >= least * (1 - 1e-9)
        found += error(matrix, target, weight, mask) / scale
        first += error(matrix, target, weight, kept) / scale
        best += least / scale
    assert found < best + 0.25 * (first - best)


@settings(max_examples=60, deadline=None)
@given(
    outs=st.integers(1, 6), ins=st.integers(1, 12), seed=st.integers(0, 10**6), density=st.floats(0.05, 0.95),
    grouping=st.sampled_from(GROUPINGS),
)  # fmt: skip
def test_every_group_keeps_its_count(outs, ins, seed, density, grouping):
    matrix, target, weight, kept = problem(outs, ins, seed, density, grouping)
    mask = best_support(matrix, target, weight, kept, grouping)[0]
    assert torch.equal(count_rows(as_rows(mask, grouping)), count_rows(as_rows(kept, grouping)))


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_of_uncorrelated_inputs_the_weights_worth_most_are_kept(grouping):
    """With H diagonal a weight is worth b^2 / H, whatever the others are."""
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(24, 48, generator=draw, dtype=torch.float64)
    scale = 0.1 + 10 * torch.rand(48, generator=draw, dtype=torch.float64)
    kept = from_rows(mark_best(as_rows(weight.abs(), "output"), 16), "output", weight.shape)
    counts = count_rows(as_rows(kept, grouping))
    mask, _ = best_support(torch.diag(scale), weight * scale, weight, kept, grouping)
    worth = weight.square() * scale
    best = from_rows(mark_best(as_rows(worth, grouping), counts), grouping, weight.shape)
    assert float(worth[~mask].sum()) <= 1.005 * float(worth[~best].sum())


def test_of_wider_layers_the_error_is_far_below_that_of_other_masks():
    """Masks for trained weights and SparseGPT's, whose weights are then solved for, against it."""
    from secateur.core.moments import Moments
    from secateur.pruners import Site

    ratios = {"magnitude": 0.0, "Wanda": 0.0, "SparseGPT": 0.0}
    for seed in range(4):
        draw = torch.Generator().manual_seed(seed)
        weight = torch.randn(24, 48, generator=draw, dtype=torch.float64)
        x = torch.randn(400, 48, generator=draw, dtype=torch.float64)
        x = x @ torch.randn(48, 48, generator=draw, dtype=torch.float64)
        matrix, target = x.T @ x, weight @ (x.T @ x)
        kept = torch.tensor([weight.numel() * 3 // 10])

        def best(scores):
            return mark_best(scores.reshape(1, -1), kept).reshape(scores.shape)  # noqa: B023

        net = networks.mlp()
        network = Network(net.model)
        session = Session(network, net.task, Uniform().budget(network.shapes, 0.3, "layer"), 0)
        site = Site("l", weight, Moments.of(x, gram=True), best(weight.abs()), "layer", kept)
        masks = {
            "magnitude": site.mask,
            "Wanda": best(weight.abs() * x.norm(dim=0)),
            "SparseGPT": SparseGPT(damping=1e-9).prune_layer(session, site, torch.Generator())[0],
        }
        mask, _ = best_support(matrix, target, weight, site.mask, "layer")
        ours = error(matrix, target, weight, mask)
        for name, other in masks.items():
            ratios[name] += ours / error(matrix, target, weight, other) / 4
    assert all(ratio < 0.8 for ratio in ratios.values()), ratios


def grouped():
    """Give a small network whose first convolution has two groups of inputs."""
    conv = nn.Conv2d(4, 6, 3, groups=2, padding=1)
    return networks.furnish(
        nn.Sequential(conv, nn.ReLU(), nn.Flatten(), nn.Linear(96, networks.CLASSES)), (4, 4, 4), 0, 40
    )


def errors_of_outputs(make, refit, grouping):
    """Prune by magnitude, refit, and give mask and the error of the first layer, which gets true inputs."""
    net, dense = make(), make()
    run = prune(net.model, net.task, OneShot(), density=0.4, grouping=grouping, refit=refit)
    first = Network(net.model).layers[0]
    task, size = net.task, net.task.size("calibration")
    batch = task.batch("calibration", torch.arange(size), torch.device("cpu"))
    given = []
    with torch.no_grad():
        for model in (net.model, dense.model):
            hook = model.get_submodule(first.name).register_forward_hook(lambda *args: given.append(args[2]))
            task.forward(model, batch)
            hook.remove()
    for layer in Network(net.model).layers:
        assert not layer.weight[~run.mask[layer.name]].any()
    return run.mask, float((given[0] - given[1]).square().sum())


@pytest.mark.parametrize("grouping", [*GROUPINGS, "global"])
@pytest.mark.parametrize("make", [networks.mlp, grouped])
def test_a_run_keeps_every_count_and_lowers_the_error(make, grouping):
    every = make().task.size("calibration")
    given, before = errors_of_outputs(make, LeastSquares(damping=1e-9, samples=every), grouping)
    mask, after = errors_of_outputs(make, ADMM(damping=1e-9, samples=every), grouping)
    assert after <= before * (1 + 1e-9)
    assert mask.flips(given) > 0
    for name in given:
        assert torch.equal(*(count_rows(as_rows(each[name], grouping)) for each in (mask, given)))


@pytest.mark.parametrize("direct", [0, 1024])
def test_the_weights_are_least_squares_for_the_mask_it_found(direct):
    """The same refit of the mask it gives changes nothing any more."""
    settings = {"samples": 50, "direct": direct, "tolerance": 1e-12, "iterations": 2000}
    net = networks.mlp()
    network = Network(net.model)
    session = Session(network, net.task, Uniform().budget(network.shapes, 0.4, "layer"), 0)
    mask, _ = session.one_shot(Magnitude(), torch.arange(4))
    mask, weights = ADMM(**settings)(session, mask, {})
    session.network.write(mask)
    same, again = LeastSquares(**settings)(session, mask, {})
    assert same.same_as(mask)
    for name, weight in weights.items():
        torch.testing.assert_close(again[name], weight, rtol=1e-6, atol=1e-8)


def test_a_mask_that_is_better_already_is_kept(monkeypatch):
    """The opposite of the best mask is refused, layer by layer."""
    net = networks.mlp()
    network = Network(net.model)
    session = Session(network, net.task, Uniform().budget(network.shapes, 0.5, "layer"), 0)
    mask, _ = session.one_shot(Wanda(), torch.arange(40))
    monkeypatch.setattr("secateur.pruners.refits.admm.best_support", lambda *args, **_: (~args[3], args[2]))
    same, _ = ADMM()(session, mask, {})
    assert same.same_as(mask)


def test_of_rows_that_are_groups_each_takes_the_better_mask(monkeypatch):
    """One row is given the opposite of its mask, the others what ADMM found."""
    net = networks.mlp()
    network = Network(net.model)
    session = Session(network, net.task, Uniform().budget(network.shapes, 0.5, "output"), 0)
    mask, _ = session.one_shot(Wanda(), torch.arange(40))
    first = next(iter(mask))
    found, _ = ADMM()(session, mask, {})
    session.network.write(mask)

    def spoilt(matrix, target, start, kept, grouping, **more):
        best, weights = best_support(matrix, target, start, kept, grouping, **more)
        best[0] = ~kept[0]
        return best, weights

    monkeypatch.setattr("secateur.pruners.refits.admm.best_support", spoilt)
    other, _ = ADMM()(session, mask, {})
    assert torch.equal(other[first][0], mask[first][0])
    assert torch.equal(other[first][1:], found[first][1:])
    assert not torch.equal(found[first][1:], mask[first][1:])


@pytest.mark.parametrize("grouping", ["layer", "output"])
def test_nothing_is_kept_where_inputs_are_always_zero(grouping):
    """Magnitude keeps weights of dead inputs; here their places go to others."""
    net = networks.mlp()
    dead = [0, 3]
    net.task.samples.calibration.inputs[:, dead] = 0
    network = Network(net.model)
    session = Session(network, net.task, Uniform().budget(network.shapes, 0.5, grouping), 0)
    mask, _ = session.one_shot(Magnitude(), torch.arange(4))
    first = next(iter(mask))
    assert mask[first][:, dead].any()
    found, _ = ADMM()(session, mask, {})
    assert not found[first][:, dead].any()
    assert session.budget.is_met_by(found)
    same, _ = LeastSquares()(session, mask, {})
    assert same.same_as(mask)


def test_dead_inputs_of_columns_and_of_whole_layers_stay_as_they_are():
    mask = torch.tensor([[True, False, True], [False, True, False]])
    weight, norms = torch.ones(2, 3), torch.tensor([[0.0, 1.0, 1.0]])
    assert torch.equal(without_dead(mask, weight, norms, "input"), mask)
    assert torch.equal(without_dead(mask, weight, torch.zeros(1, 3), "layer"), mask)
    moved = without_dead(mask, weight, norms, "output")
    assert torch.equal(moved, torch.tensor([[False, True, True], [False, True, False]]))


def test_a_matrix_without_eigenvectors_leaves_the_layer_its_mask(monkeypatch):
    def fail(*_):
        raise torch.linalg.LinAlgError("no convergence")

    monkeypatch.setattr(torch.linalg, "eigh", fail)
    net = networks.mlp()
    run = prune(net.model, net.task, OneShot(), density=0.5, refit=ADMM())
    plain = networks.mlp()
    assert run.mask.same_as(prune(plain.model, plain.task, OneShot(), density=0.5).mask)
    assert any("ADMM failed on layer" in notice for notice in run.report["notices"])
    assert run.report["weights"].startswith("refit by ADMM(")


def test_a_clock_that_runs_out_ends_the_rounds():
    matrix, target, weight, kept = problem(8, 20, 0)
    asked = []

    def late(seconds):
        asked.append(seconds)
        return len(asked) == 3

    mask, weights = best_support(matrix, target, weight, kept, "layer", out_of_time=late)
    assert len(asked) == 3
    assert asked == sorted(asked)
    assert mask.sum() == kept.sum()
    assert torch.equal(weights != 0, mask)


def test_one_after_the_other_goes_on_with_the_mask_it_found():
    net = networks.mlp(samples=200)
    refit = Successive(ADMM(samples=100), GradientSteps(steps=30, samples=20))
    run = prune(net.model, net.task, OneShot(), density=0.3, refit=refit)
    plain = networks.mlp(samples=200)
    mask = prune(plain.model, plain.task, OneShot(), density=0.3).mask
    assert run.mask.flips(mask) > 0
    assert run.report["flips"] == run.mask.flips(mask)
    assert run.report["refit_flips"] == run.mask.layer_flips(mask)
    assert run.report["weights"].startswith("refit by Successive(first=ADMM(")
    figures = run.report["evaluation"]
    assert figures["pruned"]["loss"] < figures["masked"]["loss"]
    for layer in Network(net.model).layers:
        assert torch.equal(layer.weight != 0, run.mask[layer.name])


def test_where_it_does_harm_the_guard_brings_the_mask_back(monkeypatch):
    """A later stop is taken only where the guard samples' loss is lower: mask and weights go together."""

    def harm(self, session, mask, weights):
        return Mask({n: m.roll(1, 1) for n, m in mask.items()}), {
            n: 50.0 * m.double() for n, m in mask.items()
        }

    monkeypatch.setattr(ADMM, "__call__", harm)
    net, plain = networks.mlp(samples=200), networks.mlp(samples=200)
    run = prune(net.model, net.task, OneShot(), density=0.5, refit=Successive(ADMM(), ADMM()))
    mask = prune(plain.model, plain.task, OneShot(), density=0.5).mask
    assert run.mask.same_as(mask)
    assert any("the successive refits were undone" in notice for notice in run.report["notices"])
    for ours, theirs in zip(net.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_run_folder_has_the_mask_of_the_refit_and_can_be_applied(tmp_path):
    net, plain, again = networks.mlp(), networks.mlp(), networks.mlp()
    out = tmp_path / "run"
    options = {"density": 0.4, "allocation": Global()}
    run = prune(net.model, net.task, OneShot(), refit=ADMM(), out=out, **options)
    assert run.mask.flips(prune(plain.model, plain.task, OneShot(), **options).mask) > 0
    assert Mask.load(out / "mask.safetensors").same_as(run.mask)
    apply_outcome(again.model, out)
    for ours, theirs in zip(net.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_mask_that_breaks_the_budget_is_refused_and_nothing_is_lost(monkeypatch):
    def careless(self, session, mask, weights):
        return Mask({name: torch.ones_like(kept) for name, kept in mask.items()}), {}

    monkeypatch.setattr(ADMM, "__call__", careless)
    net = networks.mlp()
    run = prune(net.model, net.task, OneShot(), density=0.5, refit=ADMM())
    assert run.mask.density == pytest.approx(0.5, abs=0.01)
    assert run.report["weights"] == "mask only"
    assert any("does not meet the budget" in notice for notice in run.report["notices"])


def test_statistics_of_another_mask_are_said_to_be(monkeypatch):
    parts = (nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, networks.CLASSES))
    net = networks.furnish(nn.Sequential(*parts), (6,), 0, 60)
    run = prune(net.model, net.task, OneShot(), density=0.5, refit=ADMM(), recalibrate=True)
    assert any("estimated for the mask before the refit" in notice for notice in run.report["notices"])


@pytest.mark.parametrize(
    ("make", "pruner", "allocation", "said"),
    [
        (networks.mlp, ICBS(), Uniform(), True),
        (networks.mlp, ICBS(), Global(), False),
        (networks.mlp, OneShot(), Uniform(), False),
        (grouped, ICBS(), Uniform(), False),
    ],
    ids=["searched", "competing", "one shot", "convolutions in groups"],
)
def test_a_search_whose_mask_is_not_used_is_said_to_be_in_vain(make, pruner, allocation, said):
    """Where the allocation gives the counts, little is left of the mask before it."""
    net = make()
    refit = Successive(ADMM(), GradientSteps(steps=2))
    run = prune(net.model, net.task, pruner, density=0.5, allocation=allocation, budget="1steps", refit=refit)
    assert any("little more than the counts" in notice for notice in run.report["notices"]) == said


def test_without_time_mask_and_weights_stay():
    net = networks.mlp()
    network, notices = Network(net.model), []
    budget = Uniform().budget(network.shapes, 0.5, "layer")
    session = Session(network, net.task, budget, 0, lambda _: True, notice=notices.append)
    mask = network.dense_mask()
    same, weights = ADMM()(session, mask, {})
    assert same.same_as(mask)
    assert weights == {}
    assert "ran out of time" in notices[0]


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: ADMM(rounds=0), "rounds of ADMM must be at least 1, not 0"),
        (lambda: ADMM(penalty=0.0), "the penalty of ADMM must be positive and finite, not 0.0"),
        (lambda: ADMM(growth=1.0), "growth of ADMM's penalty must be greater than 1, not 1.0"),
        (lambda: ADMM(damping=-1.0), "damping must be at least 0, not -1.0"),
    ],
)
def test_settings_out_of_range(build, words):
    with pytest.raises(SecateurError, match=words):
        build()
