"""`secateur evaluate`: measure a run's mask again, a recipe's dense model, or a model of Hugging Face."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from secateur.cli.language import Asked, measure
from secateur.cli.records import Records, keep_records, print_records, read_records
from secateur.cli.tables import metric
from secateur.core.device import Device, device_name, find_device
from secateur.core.errors import SecateurError
from secateur.evaluation import ELSEWHERE, device_of, evaluate, sparsity
from secateur.export.outcome import apply_outcome
from secateur.recipes import Ingredients, Recipe, load, prepare
from secateur.recipes.quick import is_image_classifier, other_pictures, quick_recipe

# Sums in another order, on another number of threads, may differ so far.
_TOLERANCE = 1e-4


def run_evaluate(
    subject: str,
    assets: str | None,
    batch_size: int | None,
    asked: Asked | None = None,
    device: Device = "auto",
) -> int:
    """Evaluate a run folder, a recipe or the folder of a model.

    Args:
        subject: a run folder, a recipe, or the folder of a Hugging Face model.
        assets: the folder that {assets} stands for.
        batch_size: samples a forward pass; None: as the data say.
        asked: other things to measure, in place of the run's or recipe's own evaluation.
        device: where, whatever the recipe says.

    Returns:
        The status: 1 where a run's mask does not give what its report says.

    Raises:
        SecateurError: the folder is no run's, or its parts cannot be used.
    """
    asked = asked or Asked()
    asked.check()
    folder = Path(subject).expanduser()
    is_run = folder.is_dir() and (folder / "mask.safetensors").is_file()
    if folder.is_dir() and not is_run:
        if (folder / "config.json").is_file():
            return _evaluate_model(str(folder), asked, device)
        raise SecateurError(
            f"{subject} holds no mask.safetensors: give the folder of a run that came to its end, "
            "or a recipe."
        )
    recipe = load(subject, {"run.device": device}, assets=assets)
    if asked.data is not None and not hasattr(recipe.data, "tokenizer"):
        return _evaluate_pictures(recipe, asked, folder if is_run else None)
    things = prepare(recipe)
    if asked:
        return _evaluate_language(things, asked, folder if is_run else None, subject)
    console = Console()
    if is_run:
        _apply(console, things.model, folder)
    found = evaluate(things.model, things.task, batch_size=batch_size)
    metrics = {name: value for name, value in found.items() if name not in ("samples", "seconds")}
    said, there = _reported(folder) if is_run else ({}, None)
    console.print(_table(metrics, said, int(found["samples"])))
    here = device_name(device_of(things.model))
    return _verdict(console, metrics, said, None if there == here else there) if said else 0


def _evaluate_model(path: str, asked: Asked, device: Device) -> int:
    """Measure a model from a folder of Hugging Face."""
    if is_image_classifier(path):
        return _evaluate_classifier(path, asked, device)
    if not asked:
        raise SecateurError(
            f"{path} is a model without data: say what to measure, with --data FILE, --zeroshot FILE or "
            "--lm-eval TASKS."
        )
    from secateur.pretrained import load_pretrained, load_tokenizer

    tokenizer = load_tokenizer(path)
    model = load_pretrained(path).to(find_device(device))
    print_records(Console(), {"model": measure(model, tokenizer, asked, "model")})
    return 0


def _evaluate_classifier(path: str, asked: Asked, device: Device) -> int:
    """Measure an image classifier on the evaluation part of pictures."""
    if asked.data is None or asked.zeroshot or asked.lm_eval:
        raise SecateurError(
            f"{path} is an image classifier: say what to measure it on, with --data and a folder or .zip of "
            "pictures, one folder a class, and with nothing else."
        )
    things = prepare(load(quick_recipe(path, asked.data), {"run.device": device}))
    found = evaluate(things.model, things.task, batch_size=asked.batch_size)
    console = Console()
    _remark(console, things)
    metrics = {name: value for name, value in found.items() if name not in ("samples", "seconds")}
    console.print(_table(metrics, {}, int(found["samples"])))
    return 0


def _evaluate_language(things: Ingredients, asked: Asked, run: Path | None, subject: str) -> int:
    """Measure the language model of a recipe; of a run, before and after pruning."""
    tokenizer = getattr(things.task, "tokenizer", None)
    if tokenizer is None:
        raise SecateurError(
            f"{subject} is of no language model, which --zeroshot and --lm-eval are for: to measure it on "
            "other pictures, give --data and nothing else."
        )
    return _side_by_side(things.model, lambda name: measure(things.model, tokenizer, asked, name), run)


def _evaluate_pictures(recipe: Recipe, asked: Asked, run: Path | None) -> int:
    """Measure the classifier of a recipe on other pictures; of a run, before and after pruning."""
    if asked.zeroshot or asked.lm_eval or asked.context is not None or asked.stride is not None:
        raise SecateurError(
            "--zeroshot, --lm-eval, --context and --stride are for language models: to measure a classifier "
            "on other pictures, give --data and nothing else."
        )
    data = str(asked.data)
    table = recipe.table
    things = prepare(load({**table, "data": other_pictures(table["data"], data)}))
    _remark(Console(), things)

    def records(_: str) -> Records:
        found = evaluate(things.model, things.task, batch_size=asked.batch_size)
        return {data: {f"{found['samples']:,.0f} evaluation samples": found}}

    return _side_by_side(things.model, records, run)


def _side_by_side(model: nn.Module, measured: Callable[[str], Records], run: Path | None) -> int:
    """Measure a dense model, and what a run made of it; keep both."""
    console = Console()
    if run is None:
        print_records(console, {"dense": measured("dense")})
        return 0
    read_records(run)  # before hours are spent
    by_model = {"dense": measured("dense")}
    _apply(console, model, run)
    by_model["pruned"] = measured("pruned")
    print_records(console, by_model)
    console.print(f"added to {keep_records(run, by_model)}", highlight=False, soft_wrap=True)
    return 0


def _remark(console: Console, things: Ingredients) -> None:
    """Say what a user should know of how the data were read."""
    for remark in things.task.remarks:
        console.print(remark, style="dim", highlight=False, markup=False, soft_wrap=True)


def _apply(console: Console, model: nn.Module, folder: Path) -> None:
    """Turn the dense model into what a run made of it, and say how much is left."""
    total = sparsity(apply_outcome(model, folder).mask)[-1]
    console.print(
        f"{folder.name}: {total.kept:,} of {total.weights:,} weights kept, density {total.density:.4g}",
        highlight=False,
    )


def _reported(folder: Path) -> tuple[dict[str, Any], str | None]:
    """Give the metrics that report.json holds of the pruned model, and where they were measured."""
    path = folder / "report.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
        return ({}, None) if report is None else (report["evaluation"]["pruned"], report.get("device"))
    except (ValueError, KeyError, TypeError) as error:
        raise SecateurError(f"{path} is damaged: evaluate with a copy of it, or move it away.") from error


def _table(metrics: dict[str, float], said: dict[str, Any], samples: int) -> Table:
    """Set what was measured beside what the report says."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column(f"{samples:,} evaluation samples")
    table.add_column("measured", justify="right")
    if said:
        table.add_column("in report.json", justify="right")
    for name, value in metrics.items():
        table.add_row(name, metric(name, value), *([metric(name, said.get(name))] if said else []))
    return table


def _verdict(console: Console, metrics: dict[str, float], said: dict[str, Any], elsewhere: str | None) -> int:
    """Say whether both agree; elsewhere: the other device that the report is of."""
    differ = [
        name
        for name, value in metrics.items()
        if name in said
        and abs(value - said[name]) > (_TOLERANCE if elsewhere is None else ELSEWHERE * max(1, said[name]))
    ]
    if differ:
        console.print(
            f"[red]{' and '.join(differ)} differ from the report: the model, the data or the versions are "
            "not those of the run.",
            soft_wrap=True,
        )
        return 1
    console.print(
        "[green]as the report says"
        if elsewhere is None
        else f"[green]as the report says, but for {elsewhere}"
    )
    return 0
