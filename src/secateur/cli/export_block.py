"""`secateur export-block`: a recipe -> the first block problem of its pruner, in a file."""

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from secateur.allocation import Global
from secateur.cli.blocks import facts, problem_rows
from secateur.cli.prune import split_words
from secateur.core.block import Block
from secateur.core.budget import as_grouping
from secateur.core.errors import SecateurError, nearest
from secateur.core.problem import BlockProblem
from secateur.exchange import check_path, save_problem
from secateur.pruners import ICBS, Network, Session
from secateur.recipes import Recipe, load, prepare
from secateur.recipes.builder import Text


def run_export_block(
    words: Sequence[str], layers: Sequence[str], size: int | None, out: str, assets: str | None
) -> int:
    """Take the one-shot mask, record a batch, select a block, and write its problem.

    Args:
        words: the recipe, and fields of it as ``--path value``.
        layers: where the block may be taken from; all where none is named.
        size: how many weights it holds, at most; None: as the recipe says.
        out: the file to write.
        assets: the folder that {assets} stands for.

    Returns:
        The status.

    Raises:
        SecateurError: something typed cannot be used.
    """
    named, typed = split_words(words)
    if len(named) != 1:
        raise SecateurError(
            "name one recipe, such as `secateur export-block digits`; `secateur recipes ls` lists them."
        )
    path = check_path(Path(out).expanduser())
    recipe = load(named[0], {name: Text(value) for name, value in typed.items()}, assets=assets)
    block, problem = _pose(recipe, layers, size)
    save_problem(problem, path, block.indices)
    held = {name: index.numel() for name, index in block.indices.items()}
    console = Console(soft_wrap=True)
    console.print(
        facts([("layers", ", ".join(f"{n} ({m:,})" for n, m in held.items())), *problem_rows(problem)])
    )
    file, car = escape(str(path)), escape(path.with_suffix(".json").name)
    console.print(
        f"\n[bold]{file}[/] holds the problem, {car} which weights its variables are.", highlight=False
    )
    console.print(f"  secateur solve {file}", style="dim", highlight=False)
    return 0


def _pose(recipe: Recipe, layers: Sequence[str], size: int | None) -> tuple[Block, BlockProblem]:
    """Set a run up as far as its first block."""
    pruner, settings = recipe.pruner, recipe.run
    if not isinstance(pruner, ICBS):
        raise SecateurError(
            f"the pruner '{pruner.part_name}' exchanges no blocks: set --pruner icbs, or name another recipe."
        )
    things = prepare(recipe)
    network = Network.of(things.model, things.task, settings.include, settings.exclude)
    for name in layers:
        if name not in network.shapes:
            raise SecateurError(f"there is no layer '{name}' to prune: {nearest(name, network.shapes)}")
    groups = as_grouping(
        settings.grouping or ("global" if isinstance(settings.allocation, Global) else "layer")
    )
    budget = settings.allocation.budget(network.shapes, settings.density, groups, network.kernels)
    session = Session(network, things.task, budget, settings.seed, chunk=things.task.per_pass)
    return pruner.pose(session, pruner.start(session), layers, size)
