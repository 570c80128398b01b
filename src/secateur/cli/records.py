"""What `secateur evaluate` measured: shown side by side, and kept in a run's evaluation.json."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from secateur.cli.tables import metric
from secateur.core.errors import SecateurError
from secateur.core.files import replacing

EVALUATION = "evaluation.json"
# Of a model, by what it was measured on, and then by protocol.
Records = dict[str, dict[str, dict[str, Any]]]


def print_records(console: Console, by_model: Mapping[str, Records]) -> None:
    """Print a table for each thing measured: the models beside one another.

    Args:
        console: where.
        by_model: the records by the model's name, such as dense and pruned.
    """
    first = next(iter(by_model.values()))
    for subject, protocols in first.items():
        for protocol in protocols:
            records = {model: found[subject][protocol] for model, found in by_model.items()}
            console.print(f"{subject}: {protocol}", highlight=False, markup=False, soft_wrap=True)
            console.print(_table(records))


def keep_records(folder: Path, by_model: Mapping[str, Records]) -> Path:
    """Add records to evaluation.json of a run; what was measured otherwise before stays there.

    Args:
        folder: of the run.
        by_model: the records by the model's name.

    Returns:
        The file.
    """
    content = read_records(folder)
    for model, found in by_model.items():
        for subject, protocols in found.items():
            for protocol, record in protocols.items():
                content.setdefault(subject, {}).setdefault(protocol, {})[model] = record
    path = folder / EVALUATION
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def read_records(folder: Path) -> Records:
    """Read evaluation.json of a run.

    Args:
        folder: of the run.

    Returns:
        What was measured on, the protocol, the model -> the record; empty where nothing was measured yet.

    Raises:
        SecateurError: it is damaged.
    """
    path = folder / EVALUATION
    try:
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError) as error:
        raise SecateurError(f"{path} is damaged ({error}): move it away.") from error
    if not isinstance(content, dict) or not all(isinstance(part, dict) for part in content.values()):
        raise SecateurError(f"{path} holds something else than evaluations: move it away.")
    return content


def _table(records: Mapping[str, Mapping[str, Any]]) -> Table:
    """Set what was measured of one thing side by side."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for model in records:
        table.add_column(model, justify="right")
    some = next(iter(records.values()))
    for name in (n for n in ("perplexity", "loss", "accuracy") if n in some):
        table.add_row(name, *(metric(name, record[name]) for record in records.values()))
    chance = some.get("chance")
    if chance is not None:
        table.add_column("chance", justify="right")
    for name in [n for n in some if f"{n}_stderr" in some and some[n] is not None]:
        cells = [_share(record[name], record[f"{name}_stderr"]) for record in records.values()]
        table.add_row(name, *cells, *([] if chance is None else [f"{100 * chance:.2f} %"]))
    return table


def _share(value: float, error: float) -> str:
    """Write a fraction and its standard error."""
    return f"{100 * value:.2f} % ± {100 * error:.2f}"
