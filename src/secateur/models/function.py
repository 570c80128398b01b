"""Any network, by the Python function that builds it."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from secateur.core.errors import SecateurError, nearest
from secateur.core.registry import register
from secateur.core.task import Task
from secateur.models.part import Model, seeded
from secateur.models.weights import load_weights


@register("model", "function")
@dataclass(frozen=True)
class Function(Model):
    """A network that a function or class of yours builds.

    Attributes:
        target: ``"package.module:function"`` or ``"path/to/file.py:function"``.
        arguments: what it is called with, by name.
        weights: a file of trained weights (.pt, .pth or .safetensors); None: as the function left them.
        seed: of random weights that the function draws.
    """

    target: str
    arguments: dict[str, Any] = field(default_factory=dict)
    weights: str | None = None
    seed: int = 0

    def build(self, task: Task | None = None) -> nn.Module:
        """Call the function.

        Args:
            task: not used.

        Returns:
            The network it returned, with the weights.

        Raises:
            SecateurError: there is no such function, it fails, or it returns no network.
        """
        function = find_function(self.target)
        try:
            with seeded(self.seed, "initial weights"):
                model = function(**self.arguments)
        except Exception as error:  # a user's code may raise anything
            raise SecateurError(
                f"calling '{self.target}' with {self.arguments} failed ({type(error).__name__}: {error}): "
                "check its arguments."
            ) from error
        if not isinstance(model, nn.Module):
            raise SecateurError(
                f"'{self.target}' returned a {type(model).__name__}: it must return a torch.nn.Module."
            )
        if self.weights is not None:
            load_weights(model, self.weights)
        return model.eval()


def find_function(target: str) -> Callable[..., Any]:
    """Import a function.

    Args:
        target: ``"package.module:function"`` or ``"path/to/file.py:function"``.

    Returns:
        The function.

    Raises:
        SecateurError: there is no such module or function, or the module cannot be imported.
    """
    place, separator, name = target.rpartition(":")
    if not separator or not place or not name:
        raise SecateurError(
            f"'{target}' names no function: write it as package.module:function or path/to/file.py:function."
        )
    try:
        module = _load_file(Path(place)) if place.endswith(".py") else importlib.import_module(place)
    except SecateurError:
        raise
    except ModuleNotFoundError as error:
        raise SecateurError(
            f"cannot import '{place}' ({error}): install it, or give the path of the file, such as "
            "models/network.py:function."
        ) from error
    except Exception as error:  # a user's code may raise anything
        raise SecateurError(f"importing '{place}' failed ({type(error).__name__}: {error}).") from error
    found = getattr(module, name, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = nearest(name, known) if known else "it has no functions."
        raise SecateurError(f"there is no function '{name}' in '{place}': {hint}")
    return found


def _load_file(path: Path) -> ModuleType:
    """Import a file as a module of its own."""
    if not path.is_file():
        raise SecateurError(
            f"there is no file '{path}': give the path of the Python file that builds the model."
        )
    name = f"secateur_user_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # both hold for every name that ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickles look their module up by name.
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
