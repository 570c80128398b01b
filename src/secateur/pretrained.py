"""Pretrained models and tokenizers in the format of Hugging Face, from a folder or by name."""

import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secateur.core.errors import SecateurError


def import_transformers() -> Any:
    """Import transformers.

    Returns:
        The package.

    Raises:
        SecateurError: it is not installed.
    """
    try:
        import transformers
    except ImportError as error:
        raise SecateurError(
            "language models need transformers, which is not installed: pip install 'secateur[hf]'."
        ) from error
    return transformers


def positions(path: str) -> int | None:
    """Read how many positions a local model has.

    Args:
        path: its folder.

    Returns:
        The number; None where its config.json does not say.
    """
    try:
        config = json.loads((Path(path).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    found = config.get("max_position_embeddings", config.get("n_positions"))
    return found if isinstance(found, int) else None


def load_tokenizer(path: str) -> Any:
    """Load a tokenizer.

    Args:
        path: a folder, or a name on the hub.

    Returns:
        The tokenizer.

    Raises:
        SecateurError: there is none, or it cannot be read.
    """
    transformers = import_transformers()
    try:
        with quiet_loading(path):
            return transformers.AutoTokenizer.from_pretrained(str(Path(path).expanduser()))
    except Exception as error:  # transformers raises errors of many kinds, its dependencies' among them
        raise SecateurError(
            f"cannot load the tokenizer of '{path}' ({_reason(error, path, 'tokenizer.json')}): give the "
            "folder of a Hugging Face model that holds tokenizer.json, with tokenizer."
        ) from error


def load_pretrained(path: str, dtype: str = "auto") -> Any:
    """Load a causal language model.

    Args:
        path: a folder, or a name on the hub.
        dtype: of its weights: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"``: as stored.

    Returns:
        The model, on the CPU, in evaluation mode.

    Raises:
        SecateurError: it cannot be read, is no causal language model, or its file lacks weights.
    """
    transformers = import_transformers()
    place = str(Path(path).expanduser())
    try:
        with quiet_loading(path):
            config = transformers.AutoConfig.from_pretrained(place)
    except Exception as error:
        raise SecateurError(
            f"cannot load the model '{path}' ({_reason(error, path, 'config.json')}): give a folder that "
            "holds config.json and model.safetensors, as save_pretrained writes it, or a name on the hub."
        ) from error
    if getattr(config, "is_encoder_decoder", False):
        raise SecateurError(
            f"'{path}' is an encoder-decoder ({config.model_type}): Secateur prunes decoder-only language "
            "models, such as Llama, Mistral, Qwen, OPT, GPT-2, Pythia, Gemma and Phi."
        )
    both_ways = type(config) in transformers.AutoModelForMaskedLM._model_mapping
    if both_ways and not getattr(config, "is_decoder", False):
        raise SecateurError(
            f"'{path}' is an encoder ({config.model_type}), which sees the tokens after a position, and not "
            "only those before it: give a causal language model, such as Llama, GPT-2 or Pythia."
        )
    try:
        with quiet_loading(path):
            model, about = transformers.AutoModelForCausalLM.from_pretrained(
                place, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
            )
    except Exception as error:
        known = type(config) in transformers.AutoModelForCausalLM._model_mapping
        what = _reason(error, path) if known else f"{config.model_type} has no causal head"
        raise SecateurError(
            f"cannot load '{path}' as a causal language model ({what}): give one that "
            "AutoModelForCausalLM loads."
        ) from error
    other = sorted(str(key[0] if isinstance(key, tuple) else key) for key in about.get("mismatched_keys", ()))
    if other:
        raise SecateurError(
            f"the checkpoint '{path}' has {len(other)} weights of another shape than its config.json says "
            f"({other[0]}): give config.json and weights of the same model."
        )
    missing = sorted(about.get("missing_keys", ()))
    if missing:
        raise SecateurError(
            f"the checkpoint '{path}' lacks {len(missing)} weights of {type(model).__name__} ({missing[0]}): "
            "it has no causal head, or is damaged; give a trained causal language model."
        )
    return model.eval()


def hub_answers() -> bool:
    """Say whether the hub can be reached; its client would find out by half a minute of trials.

    Returns:
        Whether it answers within ten seconds.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=10):
            return True
    except urllib.error.HTTPError:
        return True  # it answers, if only with an error
    except (OSError, ValueError):
        return False


@contextmanager
def quiet_loading(path: str) -> Iterator[None]:
    """Show no progress bars and no advice; ask no hub about a folder that is there.

    Args:
        path: what is loaded.

    Yields:
        Nothing.
    """
    from huggingface_hub import constants
    from transformers.utils import logging

    level, bars, offline = (
        logging.get_verbosity(),
        logging.is_progress_bar_enabled(),
        constants.HF_HUB_OFFLINE,
    )
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    reachable = not Path(path).expanduser().exists() and not _is_folder(path) and hub_answers()
    constants.HF_HUB_OFFLINE = offline or not reachable
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _is_folder(path: str) -> bool:
    """Say whether a path is meant as one, and not as a name on the hub."""
    return str(path).startswith((".", "~", "/")) or str(path).count("/") > 1


def _reason(error: Exception, path: str, file: str | None = None) -> str:
    """Say why something cannot be loaded: plainly where it can be seen, else as the error says, in short."""
    place = Path(path).expanduser()
    if place.is_file():
        return "that is a file"
    if _is_folder(path) and not place.exists():
        return "there is no such folder"
    if file is not None and place.is_dir() and not any(place.glob(f"{Path(file).stem}*")):
        return f"it holds no {file}"
    return " ".join(str(error).split()).rstrip(".")[:200] or type(error).__name__
