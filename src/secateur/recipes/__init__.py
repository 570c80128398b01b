"""Recipes: a TOML file -> a checked `Recipe` -> data, model, pruner -> a run.

recipe = load("digits", {"density": 0.2, "pruner.solver": "swaps"})
run = run_recipe(recipe, out="runs/digits")
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from secateur.recipes.recipe import Recipe, RunSettings, load
    from secateur.recipes.run import Ingredients, prepare, run_recipe

__all__ = ["Ingredients", "Recipe", "RunSettings", "load", "prepare", "run_recipe"]

_HOMES = {"Recipe": "recipe", "RunSettings": "recipe", "load": "recipe"}


def __getattr__(name: str) -> Any:
    """Import on first use: listing recipes must not take the seconds that importing torch takes."""
    if name not in __all__:
        raise AttributeError(f"module 'secateur.recipes' has no attribute '{name}'")
    return getattr(import_module(f"secateur.recipes.{_HOMES.get(name, 'run')}"), name)
