"""Wanda and SparseGPT of llm-compressor, on the same model and tokens as Secateur's own.

Not called llmcompressor.py, which would hide the package of that name from whatever lies beside it. The
package is not among Secateur's dependencies, and not all of its own are needed here:

    pip install --target /tmp/lc --no-deps llmcompressor==0.14.0.1 compressed-tensors==0.19.0 \
        auto-round==0.15.1 loguru nvidia-ml-py requests urllib3 certifi charset_normalizer
    SECATEUR_ASSETS=../shared PYTHONPATH=/tmp/lc python benchmarks/llm_compressor.py

As a script it prunes stories260K at several densities, and prints the losses on tokens that were not
calibrated with, and how far the masks agree. (Its counts are rounded down where Secateur's are rounded to
the nearest, so that at densities such as 0.3 they differ.)
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import assets
from jaxtyping import Int
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from secateur import SecateurError, prune
from secateur.evaluation import evaluate
from secateur.pruners import Network, Pruner, SequentialOneShot, SparseGPT
from secateur.scores import Wanda
from secateur.tasks import CausalLM

CONTEXT, CALIBRATION = 256, 255
os.environ.setdefault("TQDM_DISABLE", "1")  # it shows a bar for every layer


def wanda(model_path: str | Path, ids: Int[Tensor, "s t"], density: float) -> dict[str, Tensor]:
    """Prune by llm-compressor's Wanda, each output row to the density.

    Args:
        model_path: a folder that transformers loads.
        ids: calibration tokens, one row a sequence.
        density: fraction of the weights of every linear layer in a decoder layer that is kept.

    Returns:
        The weights by layer, 0 where pruned.
    """
    return _oneshot("WandaPruningModifier", model_path, ids, density)


def sparsegpt(model_path: str | Path, ids: Int[Tensor, "s t"], density: float) -> dict[str, Tensor]:
    """Prune by llm-compressor's SparseGPT, with its own damping of 0.01 and blocks of 128 columns.

    Args:
        model_path: a folder that transformers loads.
        ids: calibration tokens, one row a sequence.
        density: fraction of the weights of every linear layer in a decoder layer that is kept.

    Returns:
        The weights by layer, updated, 0 where pruned.
    """
    return _oneshot("SparseGPTModifier", model_path, ids, density)


def _oneshot(modifier: str, model_path: str | Path, ids: Tensor, density: float) -> dict[str, Tensor]:
    """Run one of its modifiers, decoder layer after decoder layer."""
    try:
        from datasets import Dataset
        from llmcompressor import oneshot
        from llmcompressor.modifiers import pruning
        from loguru import logger
    except ImportError as error:
        raise SecateurError(
            f"llm-compressor cannot be imported ({error}): install it as the head of {__file__} says."
        ) from error
    logger.remove()
    model = AutoModelForCausalLM.from_pretrained(model_path)
    recipe = getattr(pruning, modifier)(
        sparsity=1 - density, mask_structure="0:0", targets=["Linear"], ignore=["re:.*lm_head"]
    )
    rows = {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    with tempfile.TemporaryDirectory() as logs:
        oneshot(
            model=model,
            dataset=Dataset.from_dict(rows),
            recipe=[recipe],
            num_calibration_samples=len(ids),
            max_seq_length=ids.shape[1],
            shuffle_calibration_samples=False,
            pipeline="sequential",
            log_dir=logs,
        )
    layers = Network(model, CausalLM.from_ids(ids).prunable(model)).layers
    return {layer.name: layer.weight.detach().clone() for layer in layers}


def stories() -> tuple[Path, Tensor, Tensor]:
    """Give the folder of stories260K, its calibration tokens, and its evaluation tokens."""
    folder = assets() / "models" / "stories260K"
    text = (assets() / "data" / "tinystories" / "tinystories_train_head_197k.txt").read_text()
    ids = torch.tensor(AutoTokenizer.from_pretrained(folder)(text)["input_ids"])
    sequences = ids[: len(ids) // CONTEXT * CONTEXT].reshape(-1, CONTEXT)
    return folder, sequences[:CALIBRATION], sequences[CALIBRATION:]


def loss_of(model: nn.Module, task: CausalLM) -> float:
    """Measure nats a token."""
    return evaluate(model, task)["loss"]


def theirs(folder: Path, task: CausalLM, weights: dict[str, Tensor]) -> float:
    """Measure the loss of a model with given weights."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer in Network(model, task.prunable(model)).layers:
            layer.weight.copy_(weights[layer.name])
    return loss_of(model, task)


def ours(folder: Path, task: CausalLM, pruner: Pruner, density: float, grouping: str) -> Any:
    """Prune by Secateur."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return prune(model, task, pruner, density=density, grouping=grouping)


def agreement(weights: dict[str, Tensor], run: Any) -> float:
    """Give the fraction of the weights that are pruned in both or in neither."""
    same = sum(int(((weights[name] != 0) == mask).sum()) for name, mask in run.mask.items())
    return same / sum(mask.numel() for mask in run.mask.values())


def kept(weights: dict[str, Tensor]) -> float:
    """Give the fraction that is not 0."""
    return sum(int((w != 0).sum()) for w in weights.values()) / sum(w.numel() for w in weights.values())


def main() -> None:
    """Compare at the densities given."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("densities", nargs="*", type=float, default=[0.5, 0.25])
    parser.add_argument("--sequences", type=int, default=CALIBRATION, help="of calibration tokens")
    chosen = parser.parse_args()
    folder, ids, held = stories()
    ids = ids[: chosen.sequences]
    task = CausalLM.from_ids(ids, evaluation=held)
    dense = loss_of(AutoModelForCausalLM.from_pretrained(folder), task)
    print(f"{len(ids)} calibration and {len(held)} evaluation sequences of {CONTEXT}; dense {dense:.4f}")
    print("| density | method | theirs: loss, density | ours: loss, density | seconds | masks agree |")
    print("|---|---|---|---|---|---|", flush=True)
    cases: tuple[tuple[str, Any, list[tuple[Pruner, str]]], ...] = (
        ("Wanda", wanda, [(SequentialOneShot(Wanda(), len(ids)), "output")]),
        ("SparseGPT", sparsegpt, [(SparseGPT(samples=len(ids)), g) for g in ("layer", "output")]),
    )
    for density in chosen.densities:
        for words, method, own in cases:
            begin = time.perf_counter()
            weights = method(folder, ids, density)
            seconds = time.perf_counter() - begin
            for pruner, grouping in own:
                begin = time.perf_counter()
                run = ours(folder, task, pruner, density, grouping)
                print(
                    f"| {density} | {words}, ours per {grouping} "
                    f"| {theirs(folder, task, weights):.4f}, {kept(weights):.4f} "
                    f"| {run.report['evaluation']['pruned']['loss']:.4f}, {run.mask.density:.4f} "
                    f"| {seconds:.0f} / {time.perf_counter() - begin:.0f} | {agreement(weights, run):.4%} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
