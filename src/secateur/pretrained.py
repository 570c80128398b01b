"""Pretrained models, tokenizers and image processors of Hugging Face, from a folder or by name."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.core.errors import SecateurError, in_short

PROCESSOR = "preprocessor_config.json"


@dataclass(frozen=True)
class Kind:
    """A kind of pretrained model, and the words that messages have for it.

    Attributes:
        auto: the class of transformers that loads it.
        noun: what it is, with its article.
        head: what its last layers are.
    """

    auto: str
    noun: str
    head: str


LANGUAGE = Kind("AutoModelForCausalLM", "a causal language model", "causal head")
CLASSIFIER = Kind("AutoModelForImageClassification", "an image classifier", "classification head")


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
            "language models and image classifiers of Hugging Face need transformers, which is not "
            "installed: pip install 'secateur[hf]'."
        ) from error
    return transformers


def positions(path: str) -> int | None:
    """Read how many positions a local model has.

    Args:
        path: its folder.

    Returns:
        The number; None where its config.json does not say.
    """
    config = read_config(path)
    found = config.get("max_position_embeddings", config.get("n_positions"))
    return found if isinstance(found, int) else None


def read_config(path: str) -> dict[str, Any]:
    """Read config.json of a local model.

    Args:
        path: its folder.

    Returns:
        The table; empty where there is none, or none that can be read.
    """
    try:
        config = json.loads((Path(path).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return config if isinstance(config, dict) else {}


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


def load_processor(path: str) -> Any:
    """Load the image processor of a model, the one that works without torchvision.

    Args:
        path: a folder with preprocessor_config.json, or a name on the hub.

    Returns:
        The processor.

    Raises:
        SecateurError: there is none, or it cannot be read.
    """
    transformers = import_transformers()
    try:
        with quiet_loading(path):
            return transformers.AutoImageProcessor.from_pretrained(
                str(Path(path).expanduser()), backend="pil"
            )
    except Exception as error:
        raise SecateurError(
            f"cannot load the image processor of '{path}' ({_reason(error, path, PROCESSOR)}): give the "
            f"folder of a Hugging Face model that holds {PROCESSOR}, or leave processor out and give size "
            "and normalisation by hand."
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
    config = load_config(path)
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
    return _load(path, config, LANGUAGE, dtype)


def load_classifier(path: str, dtype: str = "auto") -> Any:
    """Load an image classifier.

    Args:
        path: a folder, or a name on the hub.
        dtype: of its weights: ``"float32"``, ``"bfloat16"``, ``"float16"``, or ``"auto"``: as stored.

    Returns:
        The model, on the CPU, in evaluation mode; it returns an object with logits [samples, classes].
    """
    return _load(path, load_config(path), CLASSIFIER, dtype)


def load_config(path: str) -> Any:
    """Load the configuration of a model.

    Args:
        path: a folder, or a name on the hub.

    Returns:
        The configuration.

    Raises:
        SecateurError: there is none, or it cannot be read.
    """
    transformers = import_transformers()
    try:
        with quiet_loading(path):
            return transformers.AutoConfig.from_pretrained(str(Path(path).expanduser()))
    except Exception as error:
        raise SecateurError(
            f"cannot load the model '{path}' ({_reason(error, path, 'config.json')}): give a folder that "
            "holds config.json and model.safetensors, as save_pretrained writes it, or a name on the hub."
        ) from error


def _load(path: str, config: Any, kind: Kind, dtype: str) -> Any:
    """Load a model, and refuse one whose checkpoint does not give every weight."""
    auto = getattr(import_transformers(), kind.auto)
    try:
        with quiet_loading(path):
            model, about = auto.from_pretrained(
                str(Path(path).expanduser()),
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:
        known = type(config) in auto._model_mapping
        what = _reason(error, path) if known else f"{config.model_type} has no {kind.head}"
        raise SecateurError(
            f"cannot load '{path}' as {kind.noun} ({what}): give one that {kind.auto} loads."
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
            f"it has no {kind.head}, or is damaged; give a trained "
            f"{kind.noun.partition(' ')[2]}."
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
    reachable = not Path(path).expanduser().exists() and not is_folder(path) and hub_answers()
    constants.HF_HUB_OFFLINE = offline or not reachable
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = offline
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def is_folder(path: str) -> bool:
    """Say whether a path is meant as one, and not as a name on the hub.

    Args:
        path: what was given.

    Returns:
        True for what cannot be a name.
    """
    return str(path).startswith((".", "~", "/")) or str(path).count("/") > 1


def _reason(error: Exception, path: str, file: str | None = None) -> str:
    """Say why something cannot be loaded: plainly where it can be seen, else as the error says, in short."""
    place = Path(path).expanduser()
    if place.is_file():
        return "that is a file"
    if is_folder(path) and not place.exists():
        return "there is no such folder"
    if file is not None and place.is_dir() and not any(place.glob(f"{Path(file).stem}*")):
        return f"it holds no {file}"
    said = re.split(r"\.\s", in_short(error))[0]
    return said if place.exists() else f"there is no such folder, and from the hub: {said}"
