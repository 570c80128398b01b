"""`secateur evaluate`: measure a run's mask again, or a recipe's dense model."""

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from secateur.cli.tables import metric
from secateur.core.errors import SecateurError

# Sums in another order, on another number of threads, may differ so far.
_TOLERANCE = 1e-4


def run_evaluate(subject: str, assets: str | None, batch_size: int) -> int:
    """Evaluate a run folder or a recipe.

    Args:
        subject: a run folder, or a recipe.
        assets: the folder that {assets} stands for.
        batch_size: samples a forward pass.

    Returns:
        The status: 1 where a run's mask does not give what its report says.

    Raises:
        SecateurError: the folder is no run's, or its parts cannot be used.
    """
    folder = Path(subject).expanduser()
    is_run = folder.is_dir()
    if is_run and not (folder / "mask.safetensors").is_file():
        raise SecateurError(
            f"{subject} holds no mask.safetensors: give the folder of a run that came to its end, "
            "or a recipe."
        )
    from secateur.evaluation import evaluate, sparsity
    from secateur.export import apply_mask
    from secateur.recipes import load, prepare

    things = prepare(load(subject, assets=assets))
    console = Console()
    if is_run:
        applied = apply_mask(things.model, folder)
        total = sparsity(applied.mask)[-1]
        console.print(
            f"{folder.name}: {total.kept:,} of {total.weights:,} weights kept, density {total.density:.4g}",
            highlight=False,
        )
    found = evaluate(things.model, things.task, batch_size=batch_size)
    metrics = {name: value for name, value in found.items() if name not in ("samples", "seconds")}
    said = _reported(folder) if is_run else {}
    console.print(_table(metrics, said, int(found["samples"])))
    return _verdict(console, metrics, said) if said else 0


def _reported(folder: Path) -> dict[str, Any]:
    """Give the metrics that report.json holds of the pruned model."""
    path = folder / "report.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))["evaluation"]["pruned"] if path.is_file() else {}
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


def _verdict(console: Console, metrics: dict[str, float], said: dict[str, Any]) -> int:
    """Say whether both agree."""
    differ = [n for n, value in metrics.items() if n in said and abs(value - said[n]) > _TOLERANCE]
    if differ:
        console.print(
            f"[red]{' and '.join(differ)} differ from the report: the model, the data or the versions are "
            "not those of the run.",
            soft_wrap=True,
        )
        return 1
    console.print("[green]as the report says")
    return 0
