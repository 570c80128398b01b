"""Tasks: derivatives against autograd, data read back as written, and a sentence for every bad input."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from secateur.core.errors import SecateurError
from secateur.core.task import Batch
from secateur.tasks import (
    Classification,
    Division,
    Labelled,
    Normalisation,
    Samples,
)

CPU = torch.device("cpu")


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def task() -> Classification:
    return Classification.from_arrays(draw(20, 3), torch.arange(20) % 4)


def says(*words: str) -> "re.Pattern[str]":
    return re.compile("".join(f"(?=.*{re.escape(word)})" for word in words), re.DOTALL)


# The loss and its derivatives.


def test_loss_is_minus_log_softmax(task: Classification) -> None:
    logits, labels = draw(5, 4), torch.tensor([0, 3, 1, 2, 2])
    by_hand = [float(torch.logsumexp(z, 0) - z[y]) for z, y in zip(logits, labels, strict=True)]
    assert task.losses(logits, labels).tolist() == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_factors_multiply_to_the_hessian(task: Classification, scale: float) -> None:
    logits, labels = draw(6, 4) * scale, torch.tensor([0, 1, 2, 3, 0, 1])
    factors = task.loss_hessian_factors(logits)
    assert factors.shape == (4, 6, 4)
    for s in range(6):

        def loss(z: Tensor, label: Tensor = labels[s : s + 1]) -> Tensor:
            return task.losses(z[None], label).sum()

        truth = torch.autograd.functional.hessian(loss, logits[s])
        torch.testing.assert_close(factors[:, s].T @ factors[:, s], truth, rtol=1e-10, atol=1e-14)


def test_sampled_labels_follow_the_predictions(task: Classification) -> None:
    logits = torch.tensor([0.2, -1.0, 1.5, 0.0]).repeat(40_000, 1)
    drawn = task.sample_targets(logits, torch.Generator().manual_seed(3))
    frequency = torch.bincount(drawn, minlength=4) / drawn.numel()
    p = logits[0].softmax(0)
    # Five standard deviations of a frequency.
    assert ((frequency - p).abs() < 5 * (p * (1 - p) / drawn.numel()).sqrt()).all()


def test_sampled_labels_follow_the_seed_alone(task: Classification) -> None:
    logits = draw(50, 4)
    state = torch.get_rng_state()
    first = task.sample_targets(logits, torch.Generator().manual_seed(1))
    assert torch.equal(first, task.sample_targets(logits, torch.Generator().manual_seed(1)))
    assert not torch.equal(first, task.sample_targets(logits, torch.Generator().manual_seed(2)))
    assert torch.equal(state, torch.get_rng_state())


def test_impossible_classes_are_never_sampled(task: Classification) -> None:
    logits = torch.tensor([-torch.inf, 0.0, 0.0, -torch.inf]).repeat(5000, 1)
    drawn = task.sample_targets(logits, torch.Generator().manual_seed(0))
    assert set(drawn.tolist()) == {1, 2}


def test_mean_of_sampled_gradients_gives_the_hessian(task: Classification) -> None:
    """The Fisher identity, which ties the sampling to the factors."""
    logits = draw(1, 4).repeat(200_000, 1)
    p = logits[0].softmax(0)
    drawn = task.sample_targets(logits, torch.Generator().manual_seed(0))
    gradients = p - nn.functional.one_hot(drawn, 4)
    factors = task.loss_hessian_factors(logits[:1])[:, 0]
    torch.testing.assert_close(gradients.T @ gradients / len(drawn), factors.T @ factors, rtol=0, atol=0.004)


def test_metrics_are_sums(task: Classification) -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    found = task.metrics(logits, torch.tensor([0, 1, 1]))
    assert found["accuracy"] == 2.0
    assert found["loss"] == pytest.approx(float(task.losses(logits, torch.tensor([0, 1, 1])).sum()), rel=1e-6)


# What the model may return.


class Returns(nn.Module):
    def __init__(self, outputs: object) -> None:
        super().__init__()
        self.outputs = outputs

    def forward(self, x: Tensor) -> object:
        return self.outputs


def batch(task: Classification, size: int = 5) -> Batch:
    return task.batch("calibration", torch.arange(size), CPU)


def test_logits_may_come_in_an_object(task: Classification) -> None:
    logits = draw(5, 4)
    assert task.forward(Returns(SimpleNamespace(logits=logits)), batch(task)) is logits


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({"scores": 1}, says("returns a dict", ".logits")),
        (draw(5), says("shape [5]", "[5, classes]")),
        (draw(5, 2, 4), says("shape [5, 2, 4]", "one row")),
        (draw(4, 4), says("for 5 samples")),
        (draw(5, 1), says("at least two logits")),
        (draw(5, 3), says("go up to 3", "only 3 outputs", "right model")),
        (draw(5, 4).fill_(torch.nan), says("NaN or infinite for 5 of 5 samples", "normalisation")),
    ],
)
def test_bad_outputs(task: Classification, outputs: object, message: "re.Pattern[str]") -> None:
    with pytest.raises(SecateurError, match=message):
        task.forward(Returns(outputs), batch(task))


def test_inputs_take_the_type_of_the_weights(task: Classification) -> None:
    assert task.forward(nn.Linear(3, 4).bfloat16(), batch(task)).dtype == torch.bfloat16


def test_raw_inputs_stay_whole_numbers() -> None:
    tokens = torch.arange(40).reshape(10, 4)
    task = Classification.from_arrays(tokens, torch.arange(10) % 2, raw=True)
    model = nn.Sequential(nn.Embedding(40, 3), nn.Flatten(), nn.Linear(12, 2))
    assert task.forward(model, batch(task)).shape == (5, 2)


# Batches and division.


def test_batches_are_gathered_and_normalised() -> None:
    x = torch.arange(2 * 3 * 2 * 2, dtype=torch.uint8).reshape(2, 3, 2, 2)
    norm = Normalisation(255.0, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    task = Classification(
        Samples(Labelled(x, torch.tensor([0, 1])), Labelled(x, torch.tensor([0, 1])), (), norm)
    )
    got = task.batch("evaluation", torch.tensor([1, 0]), CPU)
    assert got.targets.tolist() == [1, 0]
    assert got.inputs.dtype == torch.float32
    for s, source in enumerate((1, 0)):
        for c in range(3):
            want = (x[source, c].double() / 255 - norm.mean[c]) / norm.std[c]
            torch.testing.assert_close(got.inputs[s, c].double(), want, rtol=1e-6, atol=1e-6)


def test_bytes_are_scaled_and_other_numbers_are_not() -> None:
    assert float(Normalisation()(torch.tensor([[255]], dtype=torch.uint8))) == 1.0
    assert float(Normalisation()(torch.tensor([[255.0]]))) == 255.0


def test_division_is_disjoint_complete_and_follows_the_seed() -> None:
    plan = Division(0.25, seed=3).plan(40, None, "x")
    assert plan.disjoint
    assert len(plan.evaluation) == 10
    assert sorted([*plan.calibration.tolist(), *plan.evaluation.tolist()]) == list(range(40))
    assert torch.equal(plan.evaluation, Division(0.25, seed=3).plan(40, None, "x").evaluation)
    assert not torch.equal(plan.evaluation, Division(0.25, seed=4).plan(40, None, "x").evaluation)


def test_limits_are_drawn_from_all_over() -> None:
    plan = Division(limit=50, evaluation_limit=7).plan(1000, 100, "x")
    assert (len(plan.calibration), len(plan.evaluation)) == (50, 7)
    assert len(set(plan.calibration.tolist())) == 50
    # Data often come sorted by class: the first fifty would be of one class.
    assert int(plan.calibration.max()) > 500


def test_evaluating_on_the_calibration_data_is_remembered() -> None:
    x, y = draw(10, 3), torch.arange(10) % 2
    assert not Classification.from_arrays(x, y, evaluation_fraction=0.0).samples.disjoint
    assert not Classification.from_arrays(x, y, evaluation=(x, y)).samples.disjoint
    assert Classification.from_arrays(x, y, evaluation=(x[:2].clone(), y[:2])).samples.disjoint
    assert Classification.from_arrays(x, y).samples.disjoint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"evaluation_fraction": 1.0}, says("evaluation_fraction is 1.0", "such as 0.2")),
        ({"limit": 0}, says("limit is 0", "at least 1")),
        ({"limit": 50}, says("asks for 50 calibration samples", "gives only 8", "lower it")),
        ({"evaluation_limit": 3}, says("evaluation_limit asks for 3 evaluation", "gives only 2")),
        ({"evaluation_fraction": 0.01}, says("0.01 of the 10 samples", "more samples")),
    ],
)
def test_bad_division(arguments: dict[str, float], message: "re.Pattern[str]") -> None:
    with pytest.raises(SecateurError, match=message):
        Division(**arguments).plan(10, None, "'x.npz'")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("inputs", "labels", "message"),
    [
        (np.zeros((0, 3)), [], says("no samples", "check that it is the file")),
        (np.zeros((2, 0)), [0, 1], says("hold no numbers")),
        (np.zeros((3, 2)), [0, 1], says("3 inputs but 2 labels", "one label for each")),
        (
            [[1.0, np.nan], [1.0, 1.0]],
            [0, 1],
            says("NaN or infinite in 1 of 2", "sample 0", "remove or mend"),
        ),
        ([[1.0], [np.inf]], [0, 1], says("NaN or infinite", "sample 1")),
        ([["a"], ["b"]], [0, 1], says("type <U1", "'a'", "numbers are needed")),
        ([[1.0], [1.0, 2.0]], [0, 1], says("differ in shape")),
        (np.ones((2, 2), complex), [0, 1], says("complex", "real numbers")),
        (np.ones((2, 2)), [0, -1], says("go down to -1", "sample 1", "number the classes from 0")),
        (np.ones((2, 2)), [0.5, 1.0], says("not whole numbers")),
        (np.ones((2, 2)), [np.nan, 1.0], says("not whole numbers")),
        (np.ones((2, 2)), ["cat", "dog"], says("'cat'", "numpy.unique")),
        (np.ones((2, 2)), [[0, 1], [1, 0]], says("shape [2, 2]", "labels.argmax(1)")),
        (np.ones((2, 2)), [[0], [1]], says("shape [2, 1]", "labels.reshape(-1)")),
    ],
)
def test_bad_arrays(inputs: object, labels: object, message: "re.Pattern[str]") -> None:
    with pytest.raises(SecateurError, match=message):
        Classification.from_arrays(inputs, labels)


def test_whole_floats_are_labels() -> None:
    assert Classification.from_arrays(draw(4, 2), np.array([0.0, 1.0, 2.0, 1.0])).samples.classes == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scale": 0.0}, says("neither may be 0")),
        ({"std": (0.0,)}, says("neither may be 0")),
        ({"std": (-1.0,)}, says("positive")),
        ({"scale": -1.0}, says("positive")),
        ({"std": (float("nan"),)}, says("finite")),
        ({"mean": (float("inf"),)}, says("finite")),
        ({"mean": ()}, says("at least one mean")),
        ({"mean": (0.1, 0.2)}, says("2 numbers as mean", "[8, 3]", "1 number, or 3")),
    ],
)
def test_bad_normalisation(arguments: dict[str, object], message: "re.Pattern[str]") -> None:
    with pytest.raises(SecateurError, match=message):
        Classification.from_arrays(draw(10, 3), torch.zeros(10), **arguments)  # type: ignore[arg-type]


def test_parts_of_different_shape() -> None:
    with pytest.raises(SecateurError, match=says("[3]", "[2]")):
        Classification.from_arrays(draw(4, 3), [0, 1, 0, 1], evaluation=(draw(4, 2), [0, 1, 0, 1]))


def test_a_model_that_does_not_take_the_inputs_gets_one_sentence(task: Classification) -> None:
    batch = task.batch("calibration", torch.arange(5), CPU)
    words = ("cannot be run on", "[5, 3]", "(mat1 and mat2 shapes cannot be multiplied", "flat = true")
    with pytest.raises(SecateurError, match=says(*words)) as raised:
        task.forward(nn.Linear(7, 4), batch)
    assert isinstance(raised.value.__cause__, RuntimeError)
    assert "\n" not in str(raised.value)
    with pytest.raises(SecateurError, match="cannot be run on"):
        task.forward(nn.Bilinear(3, 3, 4), batch)  # wants two inputs


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("full"), RuntimeError("CUDA error: gone")])
def test_faults_of_the_device_are_passed_on(task: Classification, error: Exception) -> None:
    class Failing(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            raise error

    with pytest.raises(type(error)) as raised:
        task.forward(Failing(), task.batch("calibration", torch.arange(5), CPU))
    assert raised.value is error
