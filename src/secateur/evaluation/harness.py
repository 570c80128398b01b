"""Tasks of the lm-evaluation-harness, for those who have it installed."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from secateur.core.errors import SecateurError, in_short, nearest
from secateur.core.extras import need
from secateur.core.modes import evaluating

_EXTRA = "lm-eval"


def harness(
    model: nn.Module,
    tokenizer: Any,
    tasks: Sequence[str],
    *,
    include: str | Path | None = None,
    limit: int | None = None,
    batch_size: int = 16,
) -> dict[str, dict[str, float]]:
    """Run tasks of the lm-evaluation-harness (Gao et al., https://github.com/EleutherAI/lm-evaluation-harness).

    Args:
        model: a causal language model of transformers; it stays as it is, and where it is.
        tokenizer: its tokenizer.
        tasks: the names of tasks or groups of tasks. Most fetch their data from the hub, once.
        include: a folder of task files (.yaml) of your own, whose data may be local.
        limit: at most so many questions a task, the first ones; None: all.
        batch_size: texts a forward pass, > 0.

    Returns:
        By task, its metrics: acc, acc_stderr, acc_norm, ... as fractions, and the number of samples.

    Raises:
        SecateurError: lm-eval is not installed; a task is not known to it; or it cannot be run.
    """
    if not tasks:
        raise SecateurError("no task is named: name at least one, such as piqa.")
    if include is not None and not Path(include).is_dir():
        raise SecateurError(f"there is no folder '{include}': give one that holds task files (.yaml).")
    managers, evaluator, models = (
        need(f"lm_eval.{name}", _EXTRA) for name in ("tasks", "evaluator", "models.huggingface")
    )
    with _quiet(), evaluating(model):
        manager = _manager(managers.TaskManager, tasks, include)
        try:
            found = evaluator.simple_evaluate(
                model=models.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                log_samples=False,
            )
        except (OSError, ValueError, KeyError) as error:
            raise SecateurError(
                f"lm-eval cannot run {', '.join(tasks)} ({in_short(error)}): fetch its "
                "data once with a network, or give a folder of task files with local data."
            ) from error
    counts = found.get("n-samples", {})
    return {name: _metrics(values, counts.get(name, {})) for name, values in found["results"].items()}


def _manager(make: Any, tasks: Sequence[str], include: str | Path | None) -> Any:
    """Find the tasks: among one's own first, as lm-eval takes long to look through all that it has."""
    if include is not None:
        own = make(include_path=str(include), include_defaults=False)
        if set(tasks) <= set(own.all_tasks):
            return own
    manager = make(include_path=None if include is None else str(include))
    known = set(manager.all_tasks)
    for task in tasks:
        if task not in known:
            raise SecateurError(_unknown(task, known))
    return manager


def _metrics(values: dict[str, Any], counts: dict[str, Any]) -> dict[str, float]:
    """Keep the numbers, under names without lm-eval's filters where it used none."""
    numbers = {
        name.removesuffix(",none"): float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and "," in name
    }
    samples = counts.get("effective")
    return numbers if samples is None else {**numbers, "samples": float(samples)}


def _unknown(task: str, known: set[str]) -> str:
    """Say what to do about a task that is not there; there are thousands, so they are not listed."""
    tail = nearest(task, known)
    hint = tail if tail.startswith("did you mean") else "`lm_eval ls tasks` lists those it has."
    return f"lm-eval has no task '{task}': {hint}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Let lm-eval say only what went wrong."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
