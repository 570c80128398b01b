"""How likely a causal language model holds texts: tokens, batches and log-probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence

from secateur.core.errors import SecateurError
from secateur.core.modes import evaluating
from secateur.evaluation.language import check_tokens, next_token_logits, refuse_nan, window_of
from secateur.evaluation.measure import device_of

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Tokens:
    """A context and what follows it, as tokens.

    Attributes:
        ids: all of them, a start token included.
        scored: the last so many are those of the continuation, 0 < scored < len(ids).
    """

    ids: tuple[int, ...]
    scored: int


@dataclass(frozen=True, eq=False)
class Likelihoods:
    """What a model gave a list of texts.

    Attributes:
        totals: the log-probability of each continuation, nats.
        cut: how many contexts were cut on the left to fit the model's window.
    """

    totals: Float[Tensor, " n"]
    cut: int


def log_likelihoods(
    model: nn.Module,
    tokenizer: Any,
    pairs: Sequence[tuple[str, str]],
    *,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Likelihoods:
    """Give log p(continuation | context), the sum over the continuation's tokens.

    Texts are run in order of length, the longest first, and padded on the right, so what stands
    beside a text in its batch changes only rounding. Log-probabilities are formed in float32, whatever
    the model computes in.

    Args:
        model: a causal language model.
        tokenizer: its tokenizer, as of transformers.
        pairs: the contexts and their continuations.
        batch_size: texts a forward pass, > 0; memory grows with it.
        progress: called with the number of texts done and of all.

    Returns:
        The log-probabilities in the order of the pairs.

    Raises:
        SecateurError: the batch size is not positive; the tokenizer and the model do not fit; or a
            log-probability is NaN.
    """
    if batch_size < 1:
        raise SecateurError(f"batch_size is {batch_size}: evaluation needs at least 1 text a batch.")
    window = window_of(model)
    tokens = [_fit(each, window) for each in encode(tokenizer, pairs)]
    cut = sum(was_cut for _, was_cut in tokens)
    texts = [text for text, _ in tokens]
    check_tokens(model, max((max(text.ids) for text in texts), default=0))
    totals = torch.zeros(len(texts), dtype=torch.float64)
    order = sorted(range(len(texts)), key=lambda at: -len(texts[at].ids))
    device = device_of(model)
    with evaluating(model), torch.no_grad():
        for begin in range(0, len(order), batch_size):
            batch = order[begin : begin + batch_size]
            totals[batch] = _run(model, [texts[at] for at in batch], device).cpu()
            refuse_nan(totals[batch], "some texts")
            if progress is not None:
                progress(begin + len(batch), len(order))
    return Likelihoods(totals, cut)


def encode(tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> list[Tokens]:
    """Turn contexts and continuations into tokens.

    Context and continuation are tokenised as one text, and the tokens after those of the context
    alone are the continuation's. White space at the end of a context goes to the continuation, as
    tokens begin with it. A beginning-of-text token comes first where the tokenizer puts one, and before
    continuations without a context; an end-of-text token serves where there is no such token.

    Args:
        tokenizer: as of transformers.
        pairs: the contexts and their continuations.

    Returns:
        The tokens of each pair.

    Raises:
        SecateurError: there is neither a context nor a token to start from, or a continuation has no
            tokens.
    """
    contexts = [context.rstrip() for context, _ in pairs]
    wholes = [context + continuation for context, continuation in pairs]
    different = sorted(set(contexts))
    lengths = dict(zip(different, map(len, _plain(tokenizer, different)), strict=True))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    begins = bos is not None and list(tokenizer("a")["input_ids"][:1]) == [bos]
    first: int | None = eos if bos is None else bos
    found = []
    for context, ids in zip(contexts, _plain(tokenizer, wholes), strict=True):
        if not ids:
            raise SecateurError(f"the tokenizer makes no tokens of a choice after '{context}': reword it.")
        if first is None and not context:
            raise SecateurError(
                "the tokenizer has neither a bos_token nor an eos_token, so a text without context has "
                "nothing to start from: set tokenizer.bos_token."
            )
        start = [] if first is None or (context and not begins) else [first]
        # A continuation may melt into its context's last token; then that one is scored.
        known = min(lengths[context], len(ids) - 1)
        if not start and known == 0:
            raise SecateurError(
                f"the context '{context}' is one token with its choice, and the tokenizer has no bos_token "
                "to start from: lengthen the context."
            )
        found.append(Tokens((*start, *ids), len(ids) - known))
    return found


def _plain(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Tokenise without any special tokens; the empty text has none."""
    some = [text for text in texts if text]
    ids = iter(tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"] if some else [])
    return [list(next(ids)) if text else [] for text in texts]


def _fit(text: Tokens, window: int | None) -> tuple[Tokens, bool]:
    """Drop tokens on the left until the rest fits the window; the last token is only predicted."""
    if window is None or len(text.ids) <= window + 1:
        return text, False
    return Tokens(text.ids[-window - 1 :], min(text.scored, window)), True


def _run(model: nn.Module, texts: list[Tokens], device: torch.device) -> Float[Tensor, " b"]:
    """Score a batch."""
    lengths = torch.tensor([len(text.ids) - 1 for text in texts])
    ids = pad_sequence([torch.tensor(text.ids) for text in texts], batch_first=True)
    position = torch.arange(ids.shape[1] - 1)
    first = lengths - torch.tensor([text.scored for text in texts])
    there = (position < lengths[:, None]).to(device)
    scored = there & (position >= first[:, None]).to(device)
    ids = ids.to(device)
    logits = next_token_logits(model, ids[:, :-1], there.long())
    # Only what is scored is turned to float32: all of the logits would need twice the memory.
    losses = functional.cross_entropy(logits[scored].float(), ids[:, 1:][scored], reduction="none")
    row = scored.nonzero()[:, 0]
    return torch.zeros(len(texts), dtype=torch.float64, device=device).index_add(0, row, -losses.double())
