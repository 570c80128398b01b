"""Perplexity of a text, by sliding windows."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from secateur.core.errors import SecateurError
from secateur.core.modes import evaluating
from secateur.evaluation.language import check_tokens, next_token_logits, refuse_nan, window_of
from secateur.evaluation.likelihood import Progress
from secateur.evaluation.measure import device_of


@dataclass(frozen=True)
class Perplexity:
    """How well a model foresees a text.

    Attributes:
        perplexity: exp(loss).
        loss: the mean negative log-probability of a token, nats.
        accuracy: the fraction of tokens that the model holds most likely.
        tokens: how many were predicted and counted, each once.
        left_over: tokens at the end that fill no window, and were left out.
        context: tokens a window.
        stride: how far a window is from the next.
    """

    perplexity: float
    loss: float
    accuracy: float
    tokens: int
    left_over: int
    context: int
    stride: int

    @property
    def protocol(self) -> str:
        """How it was measured, in words: numbers of another protocol are other numbers."""
        how = "disjoint windows" if self.stride == self.context else f"stride {self.stride}"
        rest = f", last {self.left_over} left out" if self.left_over else ""
        return f"perplexity, context {self.context}, {how}, {self.tokens:,} tokens predicted{rest}"

    def as_record(self) -> dict[str, Any]:
        """Turn it into a dict for JSON.

        Returns:
            Its fields and the protocol.
        """
        return {**asdict(self), "protocol": self.protocol}


def perplexity(
    model: nn.Module,
    ids: Int[Tensor, " n"],
    *,
    context: int,
    stride: int | None = None,
    counted: Bool[Tensor, " n"] | None = None,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> Perplexity:
    """Give exp(-1/T sum_t log p(token t | what its window shows before it)).

    Windows of ``context`` tokens begin ``stride`` tokens apart, and each token is counted in the first
    window that predicts it. The first token of a window has nothing before it there: it is not
    predicted. With disjoint windows (stride = context) those are as many tokens as windows, and what
    fills no whole window is left out: the protocol of GPTQ, SparseGPT and Wanda, by which perplexities of
    pruned models are published. With a smaller stride each token but the text's first is counted, with at
    least context - stride tokens before it: lower, and stride times slower.

    Args:
        model: a causal language model.
        ids: the text, as tokens; a text shorter than a window is one window.
        context: tokens a window, at least 2 and at most the model's window.
        stride: from 1 to context; None: context.
        counted: False where a token is shown but not counted, such as one that begins a document, which
            nothing foretells; None: all count.
        batch_size: windows a forward pass, > 0; memory grows with it, results do not change.
        progress: called with the number of windows done and of all.

    Returns:
        The perplexity, and how it was measured.

    Raises:
        SecateurError: context, stride or batch size is out of range; the text is too short or of another
            tokenizer; or a log-probability is NaN.
    """
    stride = context if stride is None else stride
    _check(model, ids, context, stride, batch_size)
    counted = torch.ones(len(ids), dtype=torch.bool) if counted is None else counted.cpu()
    context = min(context, len(ids))
    stride = min(stride, context)
    spans = _spans(len(ids), context, stride)
    loss, right, count, device = 0.0, 0, 0, device_of(model)
    with evaluating(model), torch.no_grad():
        for begin in range(0, len(spans), batch_size):
            batch = spans[begin : begin + batch_size]
            # Only the last window can be shorter, and then it runs on its own.
            for group in _of_one_length(batch):
                windows = torch.stack([ids[first:last].long() for first, last, _ in group]).to(device)
                logits = next_token_logits(model, windows[:, :-1])
                for row, target, (first, last, done) in zip(logits, windows[:, 1:], group, strict=True):
                    losses, hits = _score(row, target, counted[first + 1 : last], done - first - 1)
                    loss, right = loss + losses, right + hits
                    count += int(counted[done:last].sum())
            if progress is not None:
                progress(begin + len(batch), len(spans))
    if not count:
        raise SecateurError("no token of the text is counted: give a text of at least 2 tokens a document.")
    mean = loss / count
    return Perplexity(_exp(mean), mean, right / count, count, len(ids) - spans[-1][1], context, stride)


def _spans(size: int, context: int, stride: int) -> list[tuple[int, int, int]]:
    """Give begin and end of each window, and the first token that it counts."""
    if stride == context:
        return [(at, at + context, at + 1) for at in range(0, size - context + 1, context)]
    spans, done = [], 1
    for begin in range(0, size, stride):
        end = min(begin + context, size)
        spans.append((begin, end, done))
        done = end
        if end == size:
            break
    return spans


def _of_one_length(spans: list[tuple[int, int, int]]) -> list[list[tuple[int, int, int]]]:
    """Split off a last window that is shorter."""
    short = spans[-1][1] - spans[-1][0] != spans[0][1] - spans[0][0]
    return [spans[:-1], spans[-1:]] if short else [spans]


def _score(
    logits: Float[Tensor, "t v"], targets: Int[Tensor, " t"], counted: Bool[Tensor, " t"], begin: int
) -> tuple[float, int]:
    """Sum the losses and count the tokens foreseen, one window at a time: float32 logits are large."""
    where = begin + counted[begin:].nonzero()[:, 0].to(logits.device)
    logits, targets = logits[where].float(), targets[where]
    losses = functional.cross_entropy(logits, targets, reduction="none")
    refuse_nan(losses, "the text")
    return float(losses.double().sum()), int((logits.argmax(dim=-1) == targets).sum())


def _exp(loss: float) -> float:
    """Exponentiate without overflow."""
    return math.exp(loss) if loss < 700 else math.inf


def _check(model: nn.Module, ids: Tensor, context: int, stride: int, batch_size: int) -> None:
    """See that the arguments can be used."""
    window = window_of(model)
    if context < 2 or (window is not None and context > window):
        most = "" if window is None else f" and at most {window}, which is the model's window"
        raise SecateurError(f"the context is {context} tokens: choose at least 2{most}.")
    if not 1 <= stride <= context:
        raise SecateurError(f"the stride is {stride}: choose 1 to {context}, which is the context.")
    if batch_size < 1:
        raise SecateurError(f"batch_size is {batch_size}: evaluation needs at least 1 window a batch.")
    if len(ids) < 2:
        raise SecateurError(f"the text has {len(ids)} tokens: give one of at least 2.")
    check_tokens(model, int(ids.max()))
