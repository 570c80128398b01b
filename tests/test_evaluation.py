"""Evaluation: numbers by hand, modes put back, tables of density, and runs side by side."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from secateur.core.errors import SecateurError
from secateur.core.mask import Mask
from secateur.evaluation import cautions, compare, evaluate, sparsity
from secateur.models import GarmentClassifier
from secateur.tasks import Classification, Idx
from secateur.testing.networks import NETWORKS, caching, mlp, shared_weight


@pytest.mark.parametrize("name", NETWORKS)
def test_means_are_those_of_a_single_pass(name: str) -> None:
    network = NETWORKS[name]()
    part = network.task.samples.evaluation
    with torch.no_grad():
        logits = network.model(part.inputs.clone())
    found = evaluate(network.model, network.task, batch_size=5)
    loss = nn.functional.cross_entropy(logits, part.labels)
    assert found["loss"] == pytest.approx(float(loss), rel=1e-12)
    assert found["accuracy"] == pytest.approx(float((logits.argmax(1) == part.labels).double().mean()))
    assert found["samples"] == len(part)
    assert found["seconds"] > 0


def test_the_size_of_a_batch_changes_nothing() -> None:
    network = mlp(samples=100)
    found = [evaluate(network.model, network.task, "calibration", batch_size=b) for b in (1, 7, 1000)]
    assert found[0]["loss"] == pytest.approx(found[2]["loss"], rel=1e-12)
    assert found[1]["accuracy"] == found[2]["accuracy"]
    with pytest.raises(SecateurError, match="batch_size is 0"):
        evaluate(network.model, network.task, batch_size=0)


def test_what_a_model_keeps_from_an_evaluation_can_be_differentiated_through() -> None:
    network = caching()
    evaluate(network.model, network.task)
    inputs = network.task.samples.evaluation.inputs
    network.model(inputs).sum().backward()
    assert network.model.get_submodule("first").get_parameter("weight").grad is not None


def test_each_module_gets_its_mode_back() -> None:
    network = mlp()
    model = nn.Sequential(network.model, nn.Dropout(0.9), nn.BatchNorm1d(4).double())
    model.train()
    model[0].eval()
    before = [module.training for module in model.modules()]
    statistics = model[2].running_mean.clone()  # type: ignore[union-attr]
    first, second = (evaluate(model, network.task)["loss"] for _ in range(2))
    assert first == second  # no dropout
    assert [module.training for module in model.modules()] == before
    assert torch.equal(model[2].running_mean, statistics)  # type: ignore[arg-type]


def test_modes_come_back_after_a_failure() -> None:
    network = mlp()
    network.model.train()
    with torch.no_grad():
        network.model[0].weight.fill_(torch.nan)  # type: ignore[index]
    with pytest.raises(SecateurError, match=r"NaN or infinite.*check the weights"):
        evaluate(network.model, network.task)
    assert all(module.training for module in network.model.modules())


def test_an_infinite_loss_is_refused() -> None:
    class Bad(Classification):
        def metrics(self, outputs, targets):  # type: ignore[no-untyped-def]
            return {"loss": float("inf"), "accuracy": 0.0}

    network = mlp()
    with pytest.raises(SecateurError, match="loss is inf among evaluation samples 0 to 4"):
        evaluate(network.model, Bad(network.task.samples), batch_size=5)


@pytest.mark.assets
def test_the_garment_classifier_is_as_good_as_published(assets: Path) -> None:
    task = Classification.from_source(Idx(str(assets / "data" / "fashion-mnist")))
    found = evaluate(GarmentClassifier(str(assets / "models" / "garment-classifier.pt")).build(), task)
    assert (task.size("calibration"), found["samples"]) == (60_000, 10_000)
    assert found["accuracy"] == pytest.approx(0.8619, abs=1e-9)
    assert found["loss"] == pytest.approx(0.3846, abs=5e-5)


def test_sparsity_of_a_mask_and_of_a_model() -> None:
    keep = torch.tensor([[1, 0, 1], [0, 0, 0]], dtype=torch.bool)
    rows = sparsity(Mask({"a": keep, "b": torch.ones(2, 2, dtype=torch.bool)}))
    first = rows[0]
    assert (first.name, first.outputs, first.inputs, first.kept, first.weights) == ("a", 2, 3, 2, 6)
    assert (first.empty_rows, first.empty_columns, first.density) == (1, 1, 2 / 6)
    assert (rows[-1].name, rows[-1].kept, rows[-1].weights, rows[-1].density) == ("total", 6, 10, 0.6)
    assert rows[-1].as_record()["density"] == 0.6
    model = nn.Linear(3, 2)
    with torch.no_grad():
        model.weight.copy_(keep)
    assert sparsity(model)[0].kept == 2
    with pytest.raises(SecateurError, match="no layers"):
        sparsity({})


def test_a_shared_weight_is_counted_once() -> None:
    rows = sparsity(shared_weight().model)
    assert [row.name for row in rows] == ["first", "second", "last", "total"]


def report(loss: float, density: float = 0.1, dense: float = 0.385) -> dict[str, Any]:
    metrics = {"pruned": {"loss": loss, "accuracy": 0.8}, "dense": {"loss": dense}}
    density_record, seconds = {"asked": density, "overall": density}, {"total": 3.5}
    return {
        "method": "icbs", "density": density_record, "seconds": seconds, "seed": 1, "evaluation": metrics
    }  # fmt: skip


def test_compare() -> None:
    rows = compare({"a": report(0.6), "b": report(0.5), "c": report(0.45, 0.2)})
    assert [row.name for row in rows] == ["c", "b", "a"]
    assert (rows[1].metrics["accuracy"], rows[1].seconds, rows[1].start) == (0.8, 3.5, {})
    assert cautions(rows[1:]) == []
    assert "different densities" in cautions(rows)[0]
    found = cautions(compare({"a": report(0.6), "b": report(0.5, dense=0.4)}))
    assert "a 0.3850" in found[0] or "b 0.4000" in found[0]
    near = {"a": report(0.6), "b": report(0.5, dense=0.389)}
    assert cautions(compare(near))
    assert not cautions(compare({**near, "a": {**near["a"], "device": "a GPU"}}))


def test_bad_reports() -> None:
    with pytest.raises(SecateurError, match="name at least one run folder"):
        compare({})
    with pytest.raises(SecateurError, match=r"report of 'a' has no metrics.*secateur evaluate a"):
        compare({"a": {"density": {"overall": 0.1}}})
