"""On a GPU: every method ends where it does on the CPU, runs resume, and memory is bounded.

Networks are tiny and in float64, so that rounding decides nothing; all that is drawn is drawn on the CPU.
"""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from secateur import (
    ADMM,
    ICBS,
    DSnoT,
    FisherSteps,
    GradientSteps,
    GramSwaps,
    LearnedMask,
    LeastSquares,
    OneShot,
    SparseGPT,
    Successive,
    prune,
)  # fmt: skip
from secateur.allocation import Global
from secateur.cli.app import run
from secateur.curvature import EmpiricalFisher, Fisher, GaussNewton, Gram, Hessian, MeanGradient
from secateur.pruners import Averaging, Batches, SequentialOneShot, Stage
from secateur.scores import RIA, Gradient, Magnitude, Random, Wanda
from secateur.solvers import Batched, Swaps
from secateur.testing import convolutions, networks

pytestmark = pytest.mark.gpu

BLOCKS = ICBS(share=0.0, solver=Swaps(), stage=Stage(blocks=3, block_size=32), batches=Batches(size=40))
CURVATURES = {
    "Fisher": Fisher(),
    "empirical Fisher": EmpiricalFisher(),
    "Gauss-Newton": GaussNewton(),
    "Hessian": Hessian(),
    "gradient alone": MeanGradient(),
}
METHODS = {
    "random": OneShot(Random()),
    "magnitude": OneShot(Magnitude()),
    "gradient": OneShot(Gradient()),
    "Wanda": OneShot(Wanda()),
    "RIA": OneShot(RIA()),
    "SparseGPT": SparseGPT(),
    "sequential": SequentialOneShot(),
    "DSnoT": DSnoT(),
    "Gram swaps": GramSwaps(),
    "averaged": ICBS(averaging=Averaging(length=3), share=1.0),
    "learned mask": LearnedMask(averaging=Averaging(length=3, unit="first")),
    "both": replace(BLOCKS, averaging=Averaging(length=3), share=0.5),
    "blocks, Batched": replace(BLOCKS, solver=Batched(restarts=2, sweeps=2)),
    "blocks, Gram": replace(BLOCKS, curvature=Gram(), init=Wanda()),
    **{f"blocks, {name}": replace(BLOCKS, curvature=curvature) for name, curvature in CURVATURES.items()},
}
REFITS = {
    "gradient": GradientSteps(steps=8),
    "Fisher": FisherSteps(steps=4),
    "least squares": LeastSquares(),
    "ADMM": ADMM(),
    "successive": Successive(ADMM(), GradientSteps(steps=8)),
}
NETWORKS = {
    "linear": networks.mlp,
    "convolutions": convolutions.batch_normed,
    "two uses": convolutions.two_scales,
}


def on(device, make, pruner, **more):
    """Prune a fresh network on a device."""
    net = make(samples=200)
    budget = more.pop("budget", "4steps" if isinstance(pruner, (ICBS, LearnedMask)) else None)
    return prune(net.model.to(device), net.task, pruner, density=0.5, budget=budget, **more)


def agree(there, here, rel=1e-6):
    """Check that two runs have the same mask, weights but for rounding, and losses."""
    assert there.mask.same_as(here.mask)
    assert all(mask.device.type == "cuda" for mask in there.mask.values())
    for name, value in here.model.state_dict().items():
        torch.testing.assert_close(there.model.state_dict()[name].cpu(), value, rtol=rel, atol=rel / 100)
    for stage in ("dense", "start", "pruned"):
        losses = [run.report["evaluation"][stage]["loss"] for run in (there, here)]
        assert losses[0] == pytest.approx(losses[1], rel=rel)


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("method", METHODS)
def test_every_method_ends_where_it_does_on_the_cpu(method, make):
    pruner = METHODS[method]
    agree(on("cuda", make, pruner), on("cpu", make, pruner))


@pytest.mark.parametrize("make", NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("refit", REFITS)
def test_every_refit_ends_where_it_does_on_the_cpu(refit, make):
    runs = [on(device, make, OneShot(Magnitude()), refit=REFITS[refit]) for device in ("cuda", "cpu")]
    # A change of 1e-15 of the weights changes those that conjugate gradients end at by up to 1e-3.
    agree(*runs, rel=0.01 if refit == "Fisher" else 1e-6)


def test_a_global_allocation_and_new_statistics_of_batchnorm():
    more = {"allocation": Global(), "recalibrate": True}
    make, pruner = convolutions.batch_normed, METHODS["averaged"]
    agree(on("cuda", make, pruner, **more), on("cpu", make, pruner, **more))


@pytest.mark.parametrize("method", ["averaged", "both", "SparseGPT"])
def test_a_run_is_resumed_as_if_never_cut(tmp_path, method):
    pruner = METHODS[method]
    whole = on("cuda", networks.mlp, pruner, out=tmp_path / "whole")
    asked = iter([False, True])
    cut = on("cuda", networks.mlp, pruner, out=tmp_path / "cut", stop=lambda: next(asked, True))
    assert cut.report["reason"] == "interrupted"
    resumed = on("cuda", networks.mlp, pruner, out=tmp_path / "cut", resume=True)
    agree(resumed, on("cpu", networks.mlp, pruner))
    assert resumed.mask.same_as(whole.mask)


def test_records_in_pieces_are_those_of_all_at_once_and_stay_within_the_memory_given():
    make, pruner = networks.mlp, METHODS["blocks, Fisher"]
    there = on("cuda", make, pruner, memory="1GB")
    agree(there, on("cpu", make, pruner))
    assert there.report["memory"]["peak"] < 1e9


@pytest.mark.parametrize("recipe", ["digits-cnn", "digits-vit"])
def test_a_trained_network_is_pruned_saved_and_evaluated_by_the_command_line(tmp_path, recipe):
    out = tmp_path / "run"
    words = (
        "--device cuda --budget 6steps --density 0.2 --share 0.5 --refit successive --first admm --save-model"
    )
    assert run(["prune", recipe, *words.split(), "--out", str(out)]) == 0
    found = json.loads((out / "report.json").read_text())["evaluation"]
    assert max(found["masked"]["loss"], found["pruned"]["loss"]) < found["start"]["loss"]
    weights = load_file(out / "model.safetensors")
    assert any((value == 0).double().mean() > 0.5 for value in weights.values())
    assert run(["evaluate", str(out)]) == 0
