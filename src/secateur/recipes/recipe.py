"""The recipe: which data, which model, which pruner, and how to run it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from secateur.allocation import Uniform
from secateur.core.allocation import Allocation
from secateur.core.budget import Grouping
from secateur.core.data import Data
from secateur.core.device import Device
from secateur.core.errors import SecateurError
from secateur.core.limit import Limit
from secateur.models import Model
from secateur.pruners.pruner import Pruner
from secateur.pruners.refit import Refit
from secateur.recipes import build as _build  # enters every part into the registry
from secateur.recipes import overrides as _overrides
from secateur.recipes.builder import build_dataclass
from secateur.recipes.describe import describe
from secateur.recipes.files import absolute, dump, expand, read_table


@dataclass(frozen=True)
class RunSettings:
    """How to run a pruner.

    Attributes:
        density: overall fraction of the prunable weights to keep, in (0, 1).
        allocation: how the density is spread over the layers.
        grouping: within what the number of kept weights is fixed; None: as the allocation needs.
        budget: such as ``"60s"``, ``"10min"`` or ``"500steps"``; None: until it converges.
        seed: of everything random.
        refit: what is done to the kept weights, or the mask, when that is found; None: nothing.
        recalibrate: estimate the running statistics of BatchNorm layers anew when the mask is found.
        memory: what the run may take, such as ``"8GB"``; None: no bound.
        include: glob patterns of layers to prune; None: as the data's task says, all as a rule.
        exclude: glob patterns of layers to leave alone.
        device: where to compute: ``"cpu"``, ``"cuda"``, or ``"auto"``, the GPU where torch sees one.
        save_model: write the pruned model into the run folder.
    """

    density: float = 0.1
    allocation: Allocation = field(default_factory=Uniform)
    grouping: Grouping | None = None
    budget: str | None = None
    seed: int = 0
    refit: Refit | None = None
    recalibrate: bool = False
    memory: str | None = None
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    device: Device = "auto"
    save_model: bool = False

    def __post_init__(self) -> None:
        """Check what can be checked without a model.

        Raises:
            SecateurError: the density is not in (0, 1), or the budget cannot be read.
        """
        if not 0 < self.density < 1:
            raise SecateurError(
                f"density is {self.density}, but it is the fraction of the weights to keep: "
                "give a number between 0 and 1, such as 0.1."
            )
        Limit.parse(self.budget)


@dataclass(frozen=True)
class Recipe:
    """Everything that a run needs.

    Attributes:
        data: where the samples come from.
        model: where the network comes from.
        pruner: what prunes it.
        run: density, budget, seed and the like.
        about: one line on what it is for.
    """

    data: Data
    model: Model
    pruner: Pruner
    run: RunSettings = field(default_factory=RunSettings)
    about: str = ""

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "Recipe":
        """Build a recipe.

        Args:
            table: sections by name, as in a file.

        Returns:
            The recipe.
        """
        return build_dataclass(cls, {"pruner": "icbs", **table}, "")

    @property
    def table(self) -> dict[str, Any]:
        """The recipe as a table, with every default written out."""
        return describe(self)

    def dumps(self) -> str:
        """Write the recipe as TOML, with every default written out.

        Returns:
            Text that loads as an equal recipe.
        """
        return dump(self.table)


def load(
    recipe: "str | Path | Mapping[str, Any]",
    overrides: Mapping[str, Any] | None = None,
    *,
    assets: str | Path | None = None,
    expand_folders: bool = True,
) -> Recipe:
    """Load a recipe and set some of its fields.

    Args:
        recipe: a built-in name, the path of a TOML file, a run folder, or a table.
        overrides: values by dotted path such as ``"pruner.block_size"``, or by a name that
            occurs once, such as ``"block_size"``.
        assets: the folder that ``{assets}`` stands for; None: what SECATEUR_ASSETS names.
        expand_folders: put folders in the place of ``{assets}`` and ``~``, and make the paths of
            files that are there absolute.

    Returns:
        The recipe.
    """
    _build.register_parts()
    table = dict(recipe) if isinstance(recipe, Mapping) else read_table(recipe)
    if overrides:
        table = _overrides.apply(table, overrides, Recipe.from_table)
    return Recipe.from_table(absolute(expand(table, assets)) if expand_folders else table)
