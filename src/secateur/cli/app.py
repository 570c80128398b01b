"""The commands. Nothing heavy is imported here, so that help comes at once."""

import sys
from importlib.metadata import version
from typing import Annotated, Literal

from cyclopts import App, CycloptsError, Parameter
from rich.console import Console

from secateur.cli import INTERRUPTED
from secateur.core.errors import FULL, SecateurError

MENDABLE = 2
Flag = Annotated[bool, Parameter(negative=())]

app = App(
    name="secateur",
    help="Prunes trained PyTorch networks by combinatorial optimisation.",
    version=lambda: version("secateur"),
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
    usage="Usage: secateur COMMAND [OPTIONS]",
    help_epilogue=(
        "Begin with `secateur demo`. An error is one sentence; --traceback shows where it came from."
    ),
)
recipes = App(name="recipes", help="List, show or copy the recipes that come with Secateur.")
app.command(recipes)


def run(words: list[str]) -> int:
    """Carry out a command.

    Args:
        words: what was typed after `secateur`.

    Returns:
        The status to leave with.

    Raises:
        CycloptsError: with --traceback, what was typed cannot be understood.
        RuntimeError: a mistake in Secateur; with --traceback, a GPU is full.
        SecateurError: with --traceback, something cannot be used.
    """
    traceback = "--traceback" in words
    words = [word for word in words if word != "--traceback"]
    try:
        status = app(
            words, exit_on_error=False, print_error=False, help_on_error=False, result_action="return_value"
        )
        return status if isinstance(status, int) else 0
    except (SecateurError, CycloptsError) as error:
        if traceback:
            raise
        Console(stderr=True, soft_wrap=True).print(
            f"error: {_sentence(error)}", markup=False, highlight=False
        )
        return MENDABLE
    except RuntimeError as error:
        torch = sys.modules.get("torch")  # which many a command never imports
        if traceback or torch is None or not isinstance(error, torch.OutOfMemoryError):
            raise
        Console(stderr=True, soft_wrap=True).print(f"error: {FULL}", markup=False, highlight=False)
        return MENDABLE
    except KeyboardInterrupt as error:
        said = f"interrupted: {error}" if str(error) else "interrupted"
        Console(stderr=True, soft_wrap=True).print(said, markup=False, highlight=False)
        return INTERRUPTED
    except BrokenPipeError:
        return 0


def _sentence(error: Exception) -> str:
    """Put a message on one line."""
    return " ".join(str(error).split())


@app.command
def demo(*, out: str = "runs/demo", seeds: int = 5, budget: str = "2s", quiet: Flag = False) -> int:
    """Train small networks of three kinds on handwritten digits, prune them by three methods, and compare.

    Args:
        out: where the run folders and the figure go.
        seeds: how many networks of each kind to train and prune.
        budget: time for each iCBS run.
        quiet: print the table only.

    Returns:
        The status.
    """
    from secateur.cli.demo import run_demo

    return run_demo(out, seeds, budget, quiet=quiet)


@app.command(
    usage="Usage: secateur prune [RECIPE | --model MODEL --data DATA] [OPTIONS] [--FIELD VALUE ...]",
    help_epilogue=(
        "Every field of a recipe can be set: by its path (--pruner.stage.block-size 512), or by its name "
        "where it occurs once (--block-size 512). A part is switched by name "
        "(--solver annealing --restarts 20). `secateur recipes show RECIPE --resolved` lists the fields."
    ),
)
def prune(
    *words: Annotated[str, Parameter(name="RECIPE", allow_leading_hyphen=True)],
    model: str | None = None,
    data: str | None = None,
    density: str | None = None,
    budget: str | None = None,
    refit: str | None = None,
    recalibrate: Flag = False,
    memory: str | None = None,
    seed: str | None = None,
    out: str | None = None,
    assets: str | None = None,
    save_model: Flag = False,
    resume: str | None = None,
    quiet: Flag = False,
) -> int:
    """Prune a trained network as a recipe says.

    Args:
        words: a built-in recipe (`secateur recipes ls` lists them), a TOML file, or a run folder.
        model: instead of a recipe: the folder or name of a Hugging Face language model or image classifier,
            timm:NAME, or a function that builds a model, package.module:function or file.py:function.
        data: with that, text (.txt, .jsonl, .parquet) or pictures: a folder or .zip with one folder a class,
            arrays (.npz, .pt, .safetensors); or a Hugging Face data set.
        density: fraction of the weights to keep, between 0 and 1.
        budget: such as 60s, 10min or 500steps: stop within it, and keep the best mask so far.
        refit: what to do to the kept weights at the end: gradient, least-squares, admm (which also chooses
            them anew), successive (least-squares, or another by --first, and then gradient, judged together)
            or fisher; none [default].
        recalibrate: estimate the running statistics of BatchNorm layers anew when the mask is found.
        memory: what the run may take, such as 8GB.
        seed: everything random follows from it.
        out: the run folder to write [default: runs/RECIPE-N].
        assets: the folder that {assets} stands for in the recipe [default: $SECATEUR_ASSETS].
        save_model: write the pruned model into the run folder.
        resume: a run folder: go on with that run.
        quiet: print nothing but errors.

    Returns:
        The status.
    """
    from secateur.cli.prune import run_prune

    named = {
        "run.density": density, "run.budget": budget, "run.seed": seed, "run.refit": refit,
        "run.memory": memory, "run.recalibrate": "true" if recalibrate else None,
        "run.save_model": "true" if save_model else None, "model": model, "data": data,
    }  # fmt: skip
    fields = {name: value for name, value in named.items() if value is not None}
    return run_prune(words, fields, out=out, assets=assets, resume=resume, quiet=quiet)


@app.command(
    usage="Usage: secateur export-block RECIPE [OPTIONS] [--FIELD VALUE ...]",
    help_epilogue="Every field of a recipe can be set, as for `secateur prune`.",
)
def export_block(
    *words: Annotated[str, Parameter(name="RECIPE", allow_leading_hyphen=True)],
    layer: list[str] | None = None,
    size: int | None = None,
    out: str = "block.lp",
    assets: str | None = None,
) -> int:
    """Write the first block problem that a recipe's pruner would solve into a file.

    Args:
        words: a built-in recipe, a TOML file, or a run folder.
        layer: a layer to take the block from, as often as needed [default: all].
        size: how many weights the block holds, at most [default: as the recipe says].
        out: the file: .lp, .coo, .ubqp or .npz; a .json of the same name comes beside it.
        assets: the folder that {assets} stands for in the recipe [default: $SECATEUR_ASSETS].

    Returns:
        The status.
    """
    from secateur.cli.export_block import run_export_block

    return run_export_block(words, layer or [], size, out, assets)


@app.command(
    usage="Usage: secateur solve FILE [OPTIONS] [--FIELD VALUE ...]",
    help_epilogue=(
        "Every setting of a solver can be set by its name, such as --solver annealing --restarts 20, or "
        "--solver dimod --sampler dwave.samplers:TabuSampler --reads 50."
    ),
)
def solve(
    *words: Annotated[str, Parameter(name="FILE", allow_leading_hyphen=True)],
    solver: str | None = None,
    seed: int = 0,
    out: str | None = None,
    answer: str | None = None,
) -> int:
    """Solve a block problem in a file, or score somebody else's answer to it.

    Args:
        words: a problem file: .lp, .coo, .ubqp or .npz.
        solver: which solver [default: the one that pruning uses].
        seed: everything random follows from it.
        out: the answer to write, as JSON [default: FILE.answer.json].
        answer: an answer file of another solver: repair, polish and score that instead.

    Returns:
        The status.
    """
    from secateur.cli.solve import run_solve

    return run_solve(words, solver, seed, out, answer)


@app.command
def evaluate(
    subject: str,
    /,
    *,
    data: str | None = None,
    zeroshot: list[str] | None = None,
    lm_eval: str | None = None,
    include: str | None = None,
    limit: int | None = None,
    context: int | None = None,
    stride: int | None = None,
    assets: str | None = None,
    batch_size: int | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",  # `core.device.Device`, which would import torch
) -> int:
    """Evaluate a run again: build its model and data, apply its mask, measure, compare.

    Args:
        subject: a run folder; a recipe, whose model is then evaluated as it is; or, with --data, --zeroshot
            or --lm-eval, the folder of a Hugging Face language model.
        data: text to measure a language model's perplexity on (.txt, .jsonl or .parquet); or pictures, for
            an image classifier.
        zeroshot: a .jsonl file of multiple-choice questions (PIQA, ARC, WinoGrande, BLiMP or your own), as
            often as needed.
        lm_eval: tasks of the lm-evaluation-harness, separated by commas.
        include: a folder of task files of your own for --lm-eval.
        limit: questions of each file or task, at most [default: all].
        context: tokens a window of --data [default: as many as the model has, at most 2048].
        stride: tokens from one window of --data to the next [default: the context].
        assets: the folder that {assets} stands for in a recipe [default: $SECATEUR_ASSETS].
        batch_size: samples a forward pass [default: as the data say; 8 windows of --data, 16 texts].
        device: where to compute; auto: on the GPU where torch sees one.

    Returns:
        The status.
    """
    from secateur.cli.evaluate import run_evaluate
    from secateur.cli.language import Asked

    tasks = tuple(task.strip() for task in (lm_eval or "").split(",") if task.strip())
    asked = Asked(data, tuple(zeroshot or ()), tasks, include, limit, context, stride, batch_size)
    return run_evaluate(subject, assets, batch_size, asked, device)


@app.command
def compare(*runs: str, figure: str | None = None) -> int:
    """Set runs side by side, the best first.

    Args:
        runs: run folders.
        figure: also draw their losses over time into this .svg, .png or .pdf file.

    Returns:
        The status.
    """
    from secateur.cli.compare import run_compare

    return run_compare(runs, figure)


@app.command
def report(folder: str, /) -> int:
    """Make report.html of a run again.

    Args:
        folder: the run folder.

    Returns:
        The status.
    """
    from secateur.report import write_page

    Console(soft_wrap=True).print(f"wrote {write_page(folder)}", highlight=False)
    return 0


@app.command
def doctor(*, assets: str | None = None) -> int:
    """Look whether everything is there that Secateur needs, and say what to do where not.

    Args:
        assets: the folder of real data and trained models [default: $SECATEUR_ASSETS].

    Returns:
        The status.
    """
    from secateur.cli.doctor import run_doctor

    return run_doctor(assets)


@recipes.command
def ls() -> int:
    """List the recipes that come with Secateur.

    Returns:
        The status.
    """
    from secateur.cli.recipes import list_recipes

    return list_recipes()


@recipes.command
def show(name: str, /, *, resolved: Flag = False) -> int:
    """Print a recipe.

    Args:
        name: a built-in recipe, a TOML file, or a run folder.
        resolved: with every field that can be set, and its default.

    Returns:
        The status.
    """
    from secateur.cli.recipes import show_recipe

    return show_recipe(name, resolved=resolved)


@recipes.command
def copy(name: str, dest: str | None = None, /) -> int:
    """Copy a recipe into a file, to be changed there.

    Args:
        name: a built-in recipe, a TOML file, or a run folder.
        dest: the file to write [default: NAME.toml].

    Returns:
        The status.
    """
    from secateur.cli.recipes import copy_recipe

    return copy_recipe(name, dest)
