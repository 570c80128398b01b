"""Which layers are found, and which are refused or left alone."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune, spectral_norm, weight_norm

from secateur.core.errors import SecateurError
from secateur.core.layer import find_layers


def names(model: nn.Module, **patterns) -> list[str]:
    return [layer.name for layer in find_layers(model, **patterns)]


def pruned(module: nn.Linear) -> None:
    prune.l1_unstructured(module, "weight", 0.5)


@pytest.mark.parametrize("wrap", [pruned, spectral_norm])
def test_a_weight_that_is_computed_is_refused(wrap) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    wrap(model[1])
    with pytest.raises(
        SecateurError, match=r"layer '1' is computed.*torch.nn.utils.prune.remove, remove_wei"
    ):
        find_layers(model)
    assert names(model, exclude=["1"]) == ["0"]


@pytest.mark.filterwarnings("ignore:.*weight_norm")
def test_the_old_weight_norm_is_refused() -> None:
    model = nn.Sequential(nn.Linear(4, 4), weight_norm(nn.Linear(4, 4)))
    with pytest.raises(SecateurError, match=r"layer '1' is computed.*remove_weight_norm"):
        find_layers(model)


def test_a_removed_pruning_is_fine() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    pruned(model[1])
    prune.remove(model[1], "weight")
    assert names(model) == ["0", "1"]


def test_parametrized_layers_are_refused_only_if_chosen() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(6)))
    for module in model[2:]:
        parametrizations.weight_norm(module)
    with pytest.raises(SecateurError, match="layer '2' is parametrized"):
        find_layers(model)
    assert names(model, include=["0", "1"]) == ["0", "1"]
    # Each is a layer of its own, though their weights are temporary tensors.
    with pytest.raises(SecateurError, match="layer '5' is parametrized"):
        find_layers(model, include=["5"])


class Decoder(nn.Module):
    """Holds a parameter and multiplies with it."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.table = weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.table


@pytest.mark.parametrize("other", ["embedding", "bilinear", "own", "root", "renamed"])
def test_weights_shared_with_what_is_not_a_linear_weight_are_left_alone(other) -> None:
    shared, plain = nn.Linear(4, 6), nn.Linear(6, 4)
    model = nn.Sequential(shared, plain)
    if other == "embedding":
        model.append(nn.Embedding(6, 4))
        model[2].weight = shared.weight
    elif other == "bilinear":
        model.append(nn.Bilinear(1, 1, 1))
        model[2].weight = shared.weight
    elif other == "own":
        model.append(Decoder(shared.weight))
    elif other == "root":
        model.register_parameter("table", shared.weight)
    else:
        model.append(nn.Linear(4, 6))
        model[2].weight = shared.weight
        prune.identity(model[2], "weight")
        assert names(model, exclude=["2"]) == ["1"]
        return
    assert names(model) == ["1"]
    with pytest.raises(SecateurError, match="'0' matches no layer"):
        find_layers(model, include=["0"])


def test_weights_shared_between_linear_modules_are_one_layer() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4, bias=False))
    model[2].weight = model[0].weight
    found = find_layers(model)
    assert [layer.name for layer in found] == ["0", "1"]
    assert found[0].modules == (model[0], model[2])
