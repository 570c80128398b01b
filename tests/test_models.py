"""Models: weights that fit and weights that do not, functions by name, and training that repeats."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.core.errors import SecateurError
from secateur.core.registry import names
from secateur.models import MLP, Function, GarmentClassifier, Trained, fit, load_weights, read_state_dict
from secateur.tasks import Classification, Digits
from secateur.testing.networks import mlp


@pytest.fixture(scope="module")
def digits() -> Classification:
    return Classification.from_source(Digits())


def equal(a: nn.Module, b: nn.Module) -> bool:
    left, right = a.state_dict(), b.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_every_model_is_registered() -> None:
    assert {"mlp", "garment-classifier", "function", "trained"} <= set(names("model"))


def test_mlp_computes_what_it_says() -> None:
    model = MLP((6, 5, 4, 3), "gelu", seed=2).build()
    state, x = model.state_dict(), torch.randn(7, 2, 3, generator=torch.Generator().manual_seed(0))
    h = x.reshape(7, 6)
    for at in (1, 2, 3):
        h = h @ state[f"linear{at}.weight"].T + state[f"linear{at}.bias"]
        h = nn.functional.gelu(h) if at < 3 else h
    torch.testing.assert_close(model(x), h)
    assert not model.training


def test_random_weights_follow_the_seed_and_leave_the_global_generator_alone() -> None:
    state = torch.get_rng_state()
    first = MLP((4, 3, 2), seed=1).build()
    assert equal(first, MLP((4, 3, 2), seed=1).build())
    assert not equal(first, MLP((4, 3, 2), seed=2).build())
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"widths": (4,)}, r"widths is \[4\].*such as widths = \[64, 128, 10\]"),
        ({"widths": (4, 0, 2)}, "widths is"),
        ({"widths": (4, 2), "activation": "gelo"}, "no activation 'gelo': did you mean 'gelu'"),
    ],
)
def test_bad_mlp(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(SecateurError, match=message):
        MLP(**arguments)


def test_weights_in_every_wrapping(tmp_path: Path) -> None:
    trained = MLP((4, 3, 2), seed=9).build()
    state = trained.state_dict()
    torch.save(state, tmp_path / "plain.pt")
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "wrapped.pth")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "parallel.pt")
    save_file(state, tmp_path / "safe.safetensors")
    for name in ("plain.pt", "wrapped.pth", "parallel.pt", "safe.safetensors"):
        assert equal(MLP((4, 3, 2), weights=str(tmp_path / name)).build(), trained)


def test_weights_that_do_not_fit(tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save({"linear1.weight": torch.zeros(3, 5), "linear9.weight": torch.zeros(1)}, path)
    with pytest.raises(SecateurError) as caught:
        MLP((4, 3, 2), weights=str(path)).build()
    message = str(caught.value)
    assert message.count("\n") == 0
    for words in (
        "the file lacks linear1.bias, linear2.weight, linear2.bias",
        "the model lacks linear9.weight",
        "linear1.weight is [3, 5] in the file but [3, 4] in the model",
    ):
        assert words in message


def test_bad_weight_files(tmp_path: Path) -> None:
    torch.save(nn.Linear(1, 1), tmp_path / "module.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    (tmp_path / "broken.pt").write_bytes(b"nonsense")
    (tmp_path / "broken.safetensors").write_bytes(b"nonsense")
    cases = {
        "none.pt": "no file '.*none.pt'",
        "module.pt": r"more than weights.*torch\.save\(model\.state_dict",
        "list.pt": r"no state_dict.*torch\.save",
        "broken.pt": "broken.pt",
        "broken.safetensors": "cannot read the weights.*damaged",
    }
    for name, message in cases.items():
        with pytest.raises(SecateurError, match=message):
            read_state_dict(tmp_path / name)


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    model = MLP((4, 2)).build()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["linear1.weight"][0, 1] = torch.nan
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(SecateurError, match=r"1 of the 8 numbers in 'linear1.weight'.*NaN or infinite"):
        load_weights(model, tmp_path / "w.pt")


CODE = """
from dataclasses import dataclass
from torch import nn

@dataclass
class Settings:
    width: int = 3

def network(width: int = Settings.width) -> nn.Module:
    return nn.Sequential(nn.Linear(4, width), nn.Dropout(), nn.Linear(width, 2))

def number() -> int:
    return 3

constant = 3
"""


def test_function(tmp_path: Path) -> None:
    file = tmp_path / "my_network.py"
    file.write_text(CODE)
    first = Function(f"{file}:network", {"width": 5}, seed=1).build()
    assert first[0].weight.shape == (5, 4)  # type: ignore[index]
    assert not first.training
    assert equal(first, Function(f"{file}:network", {"width": 5}, seed=1).build())
    torch.save(first.state_dict(), tmp_path / "w.pt")
    again = Function(f"{file}:network", {"width": 5}, str(tmp_path / "w.pt"), seed=8).build()
    assert equal(first, again)
    linear = Function("torch.nn:Linear", {"in_features": 2, "out_features": 3}).build()
    assert isinstance(linear, nn.Linear)


def test_bad_functions(tmp_path: Path) -> None:
    file = tmp_path / "my_network.py"
    file.write_text(CODE)
    (tmp_path / "broken.py").write_text("1 / 0")
    cases: list[tuple[str, dict[str, Any], str]] = [
        ("network", {}, "names no function: write it as"),
        (f"{tmp_path}/none.py:network", {}, "no file"),
        ("no_such_package.at_all:f", {}, r"cannot import 'no_such_package.at_all'.*path of the file"),
        (f"{tmp_path}/broken.py:network", {}, "failed .ZeroDivisionError"),
        (f"{file}:netwrok", {}, "no function 'netwrok'.*did you mean 'network'"),
        (f"{file}:constant", {}, "no function 'constant'"),
        (f"{file}:network", {"depth": 3}, "failed .TypeError.*depth.*check its arguments"),
        (f"{file}:number", {}, "returned a int: it must return a torch.nn.Module"),
    ]
    for target, arguments, message in cases:
        with pytest.raises(SecateurError, match=message):
            Function(target, arguments).build()


def accuracy(model: nn.Module, task: Classification) -> float:
    batch = task.batch("evaluation", torch.arange(task.size("evaluation")), torch.device("cpu"))
    with torch.no_grad():
        return task.metrics(task.forward(model, batch), batch.targets)["accuracy"] / batch.size


def test_the_demonstration_learns_the_digits(digits: Classification) -> None:
    model = Trained().build(digits)
    assert accuracy(model, digits) >= 0.96
    assert not model.training
    assert all(p.grad is None for p in model.parameters())


def test_training_repeats_and_leaves_the_global_generator_alone(digits: Classification) -> None:
    part = Trained(Function("secateur.models:MLP", {}), epochs=1)
    with pytest.raises(SecateurError, match="check its arguments"):
        part.build(digits)
    state = torch.get_rng_state()
    models = [Trained(epochs=2, seed=seed).build(digits) for seed in (5, 5, 6)]
    assert equal(models[0], models[1])
    assert not equal(models[0], models[2])
    assert torch.equal(state, torch.get_rng_state())


def test_training_with_dropout_repeats(digits: Classification) -> None:
    def trained() -> nn.Module:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(64, 16), nn.Dropout(0.5), nn.Linear(16, 10))
        fit(model, digits, epochs=1, batch_size=200, learning_rate=0.01, seed=3)
        return model

    torch.manual_seed(1)
    first = trained()
    torch.manual_seed(2)
    assert equal(first, trained())


def test_training_looks_at_calibration_data_alone() -> None:
    network = mlp()
    seen: list[str] = []

    class Watching(Classification):
        def batch(self, split, index, device):  # type: ignore[no-untyped-def]
            seen.append(split)
            return super().batch(split, index, device)

    fit(network.model, Watching(network.task.samples), epochs=1, batch_size=9, learning_rate=0.01, seed=0)
    assert set(seen) == {"calibration"}


def test_bad_training(digits: Classification) -> None:
    with pytest.raises(SecateurError, match="needs data to be trained on"):
        Trained().build()
    with pytest.raises(SecateurError, match="epochs is 0"):
        Trained(epochs=0)
    with pytest.raises(SecateurError, match=r"NaN or infinite|lower learning_rate"):
        Trained(learning_rate=1e30, epochs=2).build(digits)


@pytest.mark.assets
def test_garment_classifier_loads_and_keeps_its_keys(assets: Path) -> None:
    path = assets / "models" / "garment-classifier.pt"
    model = GarmentClassifier(str(path)).build()
    assert list(model.state_dict()) == list(torch.load(path, weights_only=True))


def test_garment_classifier_has_the_published_keys() -> None:
    keys = [f"linear_relu_stack.linear{n}.{kind}" for n in (1, 2, 3) for kind in ("weight", "bias")]
    state = GarmentClassifier().build().state_dict()
    assert list(state) == keys
    assert [list(state[key].shape) for key in keys[::2]] == [[512, 784], [512, 512], [10, 512]]
    assert not re.search("Dropout", repr(GarmentClassifier().build()))


@pytest.mark.parametrize("junk", [b"jj" * 99, b"", b"PK\x03\x04junk", bytes(range(256))])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_junk_instead_of_weights(tmp_path: Path, junk: bytes, suffix: str) -> None:
    path = tmp_path / f"junk.{suffix}"
    path.write_bytes(junk)
    with pytest.raises(SecateurError, match="damaged"):
        read_state_dict(path)


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), 0.0])
def test_learning_rates_that_mean_nothing(rate: float) -> None:
    with pytest.raises(SecateurError, match="training needs a positive number"):
        Trained(learning_rate=rate)
