"""What evaluations ask of a causal language model: its logits, its window, its vocabulary."""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from secateur.core.errors import SecateurError


def next_token_logits(
    model: nn.Module, ids: Int[Tensor, "b t"], mask: Int[Tensor, "b t"] | None = None
) -> Float[Tensor, "b t v"]:
    """Run a model on tokens.

    Args:
        model: a causal language model of transformers, or any module that turns ids into logits.
        ids: the tokens.
        mask: 1 where there is a token, 0 where there is padding; None: no padding. Models that are not
            of transformers are not given it: with padding on the right, a causal model needs none.

    Returns:
        At each position the logits of the token after it.

    Raises:
        SecateurError: the model gives no logits for each position.
    """
    # Nothing is generated, so a cache of keys and values would only take memory.
    of_transformers = hasattr(model, "config")
    out = model(input_ids=ids, attention_mask=mask, use_cache=False) if of_transformers else model(ids)
    logits = getattr(out, "logits", out)
    if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != ids.shape:
        raise SecateurError(
            f"{type(model).__name__} gives no logits for each token: evaluate a causal language model, such "
            "as LlamaForCausalLM."
        )
    return logits


def window_of(model: nn.Module) -> int | None:
    """Say how many tokens a model can look at.

    Args:
        model: the network.

    Returns:
        The length of its window; None where its configuration sets no limit.
    """
    length = getattr(_text_config(model), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def check_tokens(model: nn.Module, largest: int) -> None:
    """See that a model knows every token it will be given.

    Args:
        model: the network.
        largest: the largest id.

    Raises:
        SecateurError: the id is beyond the model's vocabulary.
    """
    known = getattr(_text_config(model), "vocab_size", None)
    if isinstance(known, int) and largest >= known:
        raise SecateurError(
            f"the text has token {largest}, but the model knows {known} tokens: use the tokenizer that "
            "belongs to the model."
        )


def refuse_nan(value: Tensor, what: str) -> None:
    """Refuse log-probabilities that are no numbers.

    Args:
        value: the log-probabilities; minus infinity is one.
        what: of which they are.

    Raises:
        SecateurError: one of them is NaN.
    """
    if bool(torch.isnan(value).any()):
        raise SecateurError(
            f"the model's log-probabilities of {what} are NaN: check its weights, and evaluate in float32 or "
            "bfloat16 where it was in float16."
        )


def _text_config(model: nn.Module) -> Any:
    """Give the part of a model's configuration that is about text."""
    config: Any = getattr(model, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config
