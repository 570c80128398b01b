"""Zero-shot questions: which of several texts does a language model hold most likely?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from secateur.evaluation.likelihood import Progress, log_likelihoods
from secateur.evaluation.questions import Question, read_questions


@dataclass(frozen=True)
class ZeroShot:
    """What a model knows of a file of questions.

    Attributes:
        kind: piqa, arc, winogrande, blimp or choices.
        questions: how many were asked.
        acc: the fraction in which the right choice has the highest log-probability.
        acc_stderr: its standard error, sqrt(p (1 - p) / n).
        acc_norm: the same with log-probabilities divided by the choices' lengths in characters; None
            where that is not customary.
        acc_norm_stderr: its standard error.
        chance: what guessing gives.
        cut: texts whose beginning was cut off, as they did not fit the model's window.
        groups: acc by group, where the file names groups: BLiMP's phenomena.
    """

    kind: str
    questions: int
    acc: float
    acc_stderr: float
    acc_norm: float | None
    acc_norm_stderr: float | None
    chance: float
    cut: int
    groups: Mapping[str, float] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        """How it was measured, in words."""
        return f"zero-shot {self.kind}, log-likelihood of each choice, {self.questions:,} questions"

    def as_record(self) -> dict[str, Any]:
        """Turn it into a dict for JSON.

        Returns:
            Its fields and the protocol.
        """
        return {**asdict(self), "groups": dict(self.groups), "protocol": self.protocol}


def zero_shot(
    model: nn.Module,
    tokenizer: Any,
    path: str | Path,
    *,
    limit: int | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> ZeroShot:
    """Ask a model the multiple-choice questions of a file, without examples.

    Choice c of a question with context x scores log p(c | x), the sum over its tokens; for
    ``acc_norm`` divided by its length in characters. The answer is the choice with the highest score;
    where several share it, each counts as that fraction of an answer, so that a model that cannot tell
    gets what chance gives. Wording and normalisation are those of the lm-evaluation-harness (Gao et al.,
    https://github.com/EleutherAI/lm-evaluation-harness), but for BLiMP: there, it puts a space before each
    sentence.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, as of transformers.
        path: a .jsonl or .jsonl.gz file; its kind is recognised by its columns.
        limit: at most so many questions, taken evenly from the whole file; None: all.
        batch_size: texts a forward pass, > 0; memory grows with it, results do not change.
        progress: called with the number of texts done and of all.

    Returns:
        Accuracies and how sure they are.
    """
    kind, questions = read_questions(path, limit=limit)
    pairs = [pair for each in questions for pair in zip(each.contexts, each.choices, strict=True)]
    found = log_likelihoods(model, tokenizer, pairs, batch_size=batch_size, progress=progress)
    scores = found.totals.split([len(each.choices) for each in questions])
    plain = [credit(score, each.gold) for score, each in zip(scores, questions, strict=True)]
    acc, norm = _mean(plain), None
    if kind.normalised:
        norm = _mean([
            credit(score / torch.tensor(each.lengths), each.gold)
            for score, each in zip(scores, questions, strict=True)
        ])  # fmt: skip
    return ZeroShot(
        kind=kind.name,
        questions=len(questions),
        acc=acc,
        acc_stderr=_error(acc, len(questions)),
        acc_norm=norm,
        acc_norm_stderr=None if norm is None else _error(norm, len(questions)),
        chance=_mean([1 / len(each.choices) for each in questions]),
        cut=found.cut,
        groups=_groups(questions, plain),
    )


def credit(scores: Float[Tensor, " c"], gold: int) -> float:
    """Say what an answer is worth.

    Args:
        scores: of each choice.
        gold: which is right.

    Returns:
        1 where the right choice alone has the highest score, 1/k where k choices share it, 0 elsewhere.
    """
    best = scores == scores.max()
    return float(best[gold]) / int(best.sum())


def _groups(questions: Sequence[Question], credits: Sequence[float]) -> dict[str, float]:
    """Average by group."""
    piles: dict[str, list[float]] = {}
    for question, value in zip(questions, credits, strict=True):
        if question.group is not None:
            piles.setdefault(question.group, []).append(value)
    return {name: _mean(pile) for name, pile in piles.items()}


def _mean(values: Sequence[float]) -> float:
    """Average."""
    return math.fsum(values) / len(values)


def _error(mean: float, count: int) -> float:
    """Give the standard error of a fraction."""
    return math.sqrt(max(0.0, mean * (1 - mean)) / count)
