"""From a recipe to a run."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from secateur.core.device import find_device
from secateur.core.events import Event
from secateur.core.task import Task
from secateur.recipes.recipe import Recipe
from secateur.report import write_page
from secateur.runs import Run, prune
from secateur.tasks import Classification


@dataclass(frozen=True, eq=False)
class Ingredients:
    """What a recipe's data and model sections stand for.

    Attributes:
        task: the data, loaded.
        model: the network, on the device that the recipe names.
    """

    task: Task
    model: nn.Module


def prepare(recipe: Recipe) -> Ingredients:
    """Load the data and build the model of a recipe; classes get the numbers the model has for their names.

    Args:
        recipe: the recipe.

    Returns:
        Both; a `SecateurError` says that the device is not there, or data or model cannot be used.
    """
    device = find_device(recipe.run.device)
    task = recipe.data.task()
    model = recipe.model.build(task)
    labels = getattr(getattr(model, "config", None), "id2label", None)
    if isinstance(task, Classification) and isinstance(labels, Mapping):
        task = task.matched({int(number): str(label) for number, label in labels.items()})
    return Ingredients(task, model.to(device))


def run_recipe(
    recipe: Recipe,
    *,
    out: str | Path | None = None,
    resume: bool = False,
    listeners: Sequence[Callable[[Event], None]] = (),
    stop: Callable[[], bool] | None = None,
    ingredients: Ingredients | None = None,
) -> Run:
    """Prune as a recipe says.

    Args:
        recipe: the recipe.
        out: the run folder to write; None: none is written.
        resume: go on with the run that is in the folder.
        listeners: called with every event.
        stop: asked between steps whether to stop there, keeping the best mask so far.
        ingredients: data and model, where they have been prepared already.

    Returns:
        The run.
    """
    things = ingredients or prepare(recipe)
    settings = recipe.run
    run = prune(
        things.model,
        things.task,
        recipe.pruner,
        density=settings.density,
        allocation=settings.allocation,
        grouping=settings.grouping,
        budget=settings.budget,
        seed=settings.seed,
        refit=settings.refit,
        recalibrate=settings.recalibrate,
        memory=settings.memory,
        include=settings.include,
        exclude=settings.exclude,
        out=out,
        recipe=recipe.table,
        resume=resume,
        save_model=settings.save_model,
        listeners=tuple(listeners),
        stop=stop,
    )
    if run.folder is not None:
        write_page(run.folder)
    return run
