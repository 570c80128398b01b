"""What `secateur evaluate` measures of language models: perplexity, questions, tasks of lm-eval."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from secateur.cli.tables import metric
from secateur.core.errors import SecateurError
from secateur.core.extras import need
from secateur.core.files import replacing

EVALUATION = "evaluation.json"
# The window of most published perplexities, where the model has one as long.
_CONTEXT = 2048
# Of a model, by what it was measured on, and then by protocol.
Records = dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True)
class Asked:
    """What to measure.

    Attributes:
        data: a file of text.
        zeroshot: files of questions.
        lm_eval: tasks of the lm-evaluation-harness.
        include: a folder of task files for it.
        limit: questions of each file or task, at most; None: all.
        context: tokens a window; None: as many as the model has, at most 2048.
        stride: how far windows are apart; None: the context.
        batch_size: texts or windows a forward pass; None: 16 texts, 8 windows.
    """

    data: str | None = None
    zeroshot: tuple[str, ...] = ()
    lm_eval: tuple[str, ...] = ()
    include: str | None = None
    limit: int | None = None
    context: int | None = None
    stride: int | None = None
    batch_size: int | None = None

    def __bool__(self) -> bool:
        """Say whether anything is asked for."""
        return bool(self.data or self.zeroshot or self.lm_eval)

    def check(self) -> None:
        """See that options come with what they belong to, before anything is loaded.

        Raises:
            SecateurError: one does not, a file is not there, or lm-eval is not.
        """
        if not self.data and (self.context is not None or self.stride is not None):
            raise SecateurError("--context and --stride are about perplexity: give --data FILE, too.")
        if not self.zeroshot and not self.lm_eval and self.limit is not None:
            raise SecateurError("--limit is about questions: give --zeroshot FILE or --lm-eval TASKS, too.")
        if self.include is not None and not self.lm_eval:
            raise SecateurError("--include is about tasks of lm-eval: give --lm-eval TASKS, too.")
        for path in self.zeroshot:
            if not Path(path).expanduser().is_file():
                raise SecateurError(f"there is no file '{path}': give a .jsonl file of questions.")
        if self.lm_eval:
            need("lm_eval", "lm-eval")


def measure(model: nn.Module, tokenizer: Any, asked: Asked, name: str) -> Records:
    """Measure a model.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer.
        asked: what to measure.
        name: what to call the model while it is measured.

    Returns:
        The records.
    """
    from secateur.evaluation import harness, perplexity, zero_shot
    from secateur.evaluation.language import window_of
    from secateur.tasks.documents import read_documents
    from secateur.tasks.stream import stream

    found: Records = {}
    if asked.data is not None:
        text = stream(read_documents(asked.data), tokenizer)
        context = asked.context or min(_CONTEXT, window_of(model) or _CONTEXT)
        with _telling(f"{name} on {asked.data}") as tell:
            measured = perplexity(
                model, text.ids, context=context, stride=asked.stride, counted=text.counted,
                batch_size=asked.batch_size or 8, progress=tell,
            )  # fmt: skip
        found[asked.data] = {measured.protocol: measured.as_record()}
    for path in asked.zeroshot:
        with _telling(f"{name} on {path}") as tell:
            answered = zero_shot(
                model, tokenizer, path, limit=asked.limit, batch_size=asked.batch_size or 16, progress=tell
            )
        found[path] = {**found.get(path, {}), answered.protocol: answered.as_record()}
    if asked.lm_eval:
        tasks = harness(
            model, tokenizer, asked.lm_eval, include=asked.include, limit=asked.limit,
            batch_size=asked.batch_size or 16,
        )  # fmt: skip
        for task, metrics in tasks.items():
            protocol = f"{task}, {metrics.get('samples', 0):,.0f} samples"
            found.setdefault("lm-eval", {})[protocol] = dict(metrics)
    return found


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


@contextmanager
def _telling(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far a measurement is, on terminals only."""
    with Console(stderr=True).status(what) as status:
        yield lambda done, total: status.update(f"{what}: {done:,} of {total:,}")
