"""What `secateur evaluate` measures of language models: perplexity, questions, tasks of lm-eval."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from torch import nn

from secateur.cli.records import Records
from secateur.core.errors import SecateurError
from secateur.core.extras import need

# The window of most published perplexities, where the model has one as long.
_CONTEXT = 2048


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


@contextmanager
def _telling(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show how far a measurement is, on terminals only."""
    with Console(stderr=True).status(what) as status:
        yield lambda done, total: status.update(f"{what}: {done:,} of {total:,}")
