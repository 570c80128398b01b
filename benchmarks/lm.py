"""Language models: quality at several densities, what a stage costs, and time and memory of a larger model.

    SECATEUR_ASSETS=... python benchmarks/lm.py [--part quality | cost | large] [--seeds 5]
        [--densities 0.7 0.5 0.4 0.3] [--budget 36] [--write]

Quality: models/stories260K on the TinyStories text, sequences of 256 tokens, the same budget in every
layer, mean next-token loss of the 138 last sequences; each seed draws its own 230 of the 255 sequences
before them for calibration. llm-compressor's SparseGPT is run beside ours where it is installed. Cost: a
stage of 128 sequences against a forward and backward pass of the same sequences. Large: a random Llama of
100 million weights, every method in a process of its own, predicted against measured memory. With --write
the tables of docs/language.md are replaced. About 45 minutes in all on two cores.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from common import ROOT, Run, assets, machine, refresh, spread, table
from torch import nn

from secateur import ICBS, CausalLM, LearnedMask, OneShot, SecateurError, prune
from secateur.core.events import Evaluated, Event
from secateur.core.seeds import generator
from secateur.models import PretrainedLM
from secateur.pruners import (
    Batches,
    DSnoT,
    FisherSteps,
    GradientSteps,
    GramSwaps,
    LeastSquares,
    Pruner,
    Refit,
    Session,
    SparseGPT,
    Stage,
)  # fmt: skip
from secateur.runs.memory import peak_bytes
from secateur.scores import RIA, Wanda
from secateur.tasks import Text
from secateur.tasks.causal_lm import Sequences

PAGE = ROOT / "docs" / "language.md"
CALIBRATION, EVALUATION, DRAWN = 255, 138, 230
DENSITIES = (0.7, 0.5, 0.4, 0.3)
LARGE = {
    "one shot, Wanda": "wanda",
    "SparseGPT": "sparsegpt",
    "iCBS, 5 stages of averaged gradients": "icbs",
    "iCBS, 2 stages of blocks, memory = 4GB": "groups",
}


def stories_task(seed: int) -> CausalLM:
    """Tokenise the stories, and draw a seed's calibration sequences."""
    whole = Text(
        str(assets() / "data" / "tinystories" / "tinystories_train_head_197k.txt"),
        str(assets() / "models" / "stories260K"),
        context=256,
        evaluation_fraction=EVALUATION / (CALIBRATION + EVALUATION),
    ).task()
    order = torch.randperm(CALIBRATION, generator=generator(seed, "calibration draw"))
    chosen = order[:DRAWN].sort().values
    part = whole.calibration
    return replace(whole, calibration=Sequences(part.ids[chosen], part.targets[chosen]))


def stories_model() -> nn.Module:
    """Load the model anew: a run changes the model it is given."""
    return PretrainedLM(str(assets() / "models" / "stories260K")).build()


def methods(budget: int) -> dict[str, tuple[Pruner, Refit | None, str | None]]:
    """Give what is compared: the pruner, the refit, and the budget."""
    return {
        "magnitude": (OneShot(), None, None),
        "Wanda": (OneShot(Wanda()), None, None),
        "RIA": (OneShot(RIA()), None, None),
        "DSnoT": (DSnoT(), None, None),
        "Gram swaps": (GramSwaps(), None, None),
        "SparseGPT": (SparseGPT(), None, None),
        "Gram swaps, least-squares refit": (GramSwaps(), LeastSquares(), None),
        f"iCBS and gradient steps, {budget} s": (ICBS(), GradientSteps(), f"{budget}s"),
        "iCBS, 30 s": (ICBS(), None, "30s"),
        "iCBS, 120 s": (ICBS(), None, "120s"),
        "LearnedMask, 30 s": (LearnedMask(), None, "30s"),
        "iCBS 30 s, least-squares refit": (ICBS(), LeastSquares(), "30s"),
        f"iCBS and Fisher steps, {budget} s": (ICBS(), FisherSteps(), f"{budget}s"),
    }


# What is measured at one density alone, and by how many seeds.
FEW = {
    "iCBS, 30 s": 5,
    "iCBS, 120 s": 1,
    "LearnedMask": 2,
    "iCBS 30 s, least-squares": 2,
    "iCBS and Fisher": 2,
}


def quality(densities: list[float], seeds: int, budget: int, only: list[str]) -> list[str]:
    """Measure every method at every density; print while going on, and give the table."""
    found: dict[str, dict[float, list[Run]]] = {}
    tasks = [stories_task(seed) for seed in range(seeds)]
    for name, (pruner, refit, limit) in methods(budget).items():
        if only and not any(word in name for word in only):
            continue
        few = next((count for word, count in FEW.items() if name.startswith(word)), None)
        for density in densities if few is None else [0.5]:
            for seed, task in enumerate(tasks[:few]):
                masked, run = _measure(task, pruner, refit, limit, density, seed)
                if masked is not None and few is None and limit is not None:
                    note(found, f"iCBS, the first part of the {limit.removesuffix('s')} s", density, masked)
                note(found, name, density, run)
    for density in densities if not only or "llm-compressor" in only else []:
        for task in tasks:
            run = _by_llm_compressor(task, density)
            if run is not None:
                note(found, "SparseGPT of llm-compressor", density, run)
    head = ["loss on held-out text (dense 1.850)", "kept weights", "seconds", *(f"{d:g}" for d in densities)]
    rows = []
    for name, runs in sorted(found.items(), key=lambda item: _first(item[1])["weights"] == "changed"):
        everything = [run for each in runs.values() for run in each]
        seconds = statistics.mean(run["seconds"] for run in everything)
        cells = [spread([run["loss"] for run in runs[d]], 3) if d in runs else "" for d in densities]
        rows.append([name, everything[0]["weights"], f"{seconds:.1f}", *cells])
    return table(head, rows)


def _first(runs: dict[float, list[Run]]) -> Run:
    """Give one of a method's runs."""
    return next(iter(runs.values()))[0]


def note(found: dict[str, dict[float, list[Run]]], name: str, density: float, run: Run) -> None:
    """Keep a run, and print it."""
    found.setdefault(name, {}).setdefault(density, []).append(run)
    print(
        f"{density:g}  {name:45s}  loss {run['loss']:.3f}  {run['seconds']:.1f} s",
        file=sys.stderr,
        flush=True,
    )


def _measure(
    task: CausalLM, pruner: Pruner, refit: Refit | None, limit: str | None, density: float, seed: int
) -> tuple[Run | None, Run]:
    """Prune once; give the mask alone where a refit followed, and the result."""
    masked: list[Run] = []

    def hear(event: Event) -> None:
        if isinstance(event, Evaluated) and event.subject == "masked":
            masked.append(
                {
                    "loss": event.metrics["loss"],
                    "seconds": event.elapsed - event.seconds,
                    "weights": "trained",
                }
            )

    report = prune(
        stories_model(), task, pruner, density=density, budget=limit, seed=seed, refit=refit, listeners=[hear]
    ).report
    seconds = report["seconds"]["total"]
    if limit is None:  # without what the evaluations of the run take
        seconds -= report["seconds"]["evaluate"]
    changed = "trained" if report["weights"] == "mask only" else "changed"
    run = {"loss": report["evaluation"]["pruned"]["loss"], "seconds": seconds, "weights": changed}
    return (masked[0] if masked else None), run


def _by_llm_compressor(task: CausalLM, density: float) -> Run | None:
    """Prune by llm-compressor's SparseGPT on the same sequences; None where it is not installed."""
    from llm_compressor import sparsegpt

    from secateur.core.errors import SecateurError as Missing
    from secateur.evaluation import evaluate

    begin = time.perf_counter()
    try:
        weights = sparsegpt(str(assets() / "models" / "stories260K"), task.calibration.ids.long(), density)
    except (ImportError, Missing) as error:
        print(f"llm-compressor is left out: {error}", file=sys.stderr)
        return None
    seconds = time.perf_counter() - begin
    model = stories_model()
    modules = dict(model.named_modules())
    with torch.no_grad():
        for name, weight in weights.items():
            modules[name].weight.copy_(weight)
    return {"loss": evaluate(model, task)["loss"], "seconds": seconds, "weights": "changed"}


def cost() -> list[str]:
    """Measure stages of 128 sequences against a forward and backward pass of them, in turn."""
    task = stories_task(0)
    plain, rows = [], {}
    for pruner, name in (
        (ICBS(averaging=replace(ICBS().averaging, length=11)), "averaged gradients, 11 mini-batches of 12"),
        (
            ICBS(share=0.0, batches=Batches(size=128), stage=Stage(blocks=8)),
            "blocks: tape, 8 blocks of 1,024 from all layers, loss measured again",
        ),
    ):
        session, state = _begin(pruner, task)
        pruner.step(session, state)  # warm
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            _forward_and_backward(session, torch.arange(128))
            plain.append(time.perf_counter() - begin)
            session.network.write(state.mask)
            begin = time.perf_counter()
            _, outcome = pruner.step(session, state)
            times.append((time.perf_counter() - begin) * 128 / outcome.samples)
        rows[name] = min(times)
    base = min(plain)
    cells = [["forward and backward pass, parameters' gradients by autograd", "1.00", f"{base:.2f}"]]
    cells += [[name, f"{seconds / base:.2f}", f"{seconds:.2f}"] for name, seconds in rows.items()]
    return table(["128 sequences of 256 tokens, all layers", "ratio", "seconds"], cells)


def _begin(pruner: Pruner, task: CausalLM) -> tuple[Session, Any]:
    """Set a run up as far as its first stage."""
    from secateur.allocation import Uniform
    from secateur.pruners import Network

    network = Network.of(stories_model(), task, None)
    budget = Uniform().budget(network.shapes, 0.5, "layer")
    session = Session(network, task, budget, seed=0, chunk=task.per_pass)
    pruner.warm_up()
    return session, pruner.start(session)


def _forward_and_backward(session: Session, index: torch.Tensor) -> None:
    """Do what training does, without a step."""
    model = session.network.model
    for batch in session.passes(index):
        session.task.losses(session.task.forward(model, batch), batch.targets).mean().backward()
    model.zero_grad(set_to_none=True)


def large() -> list[str]:
    """Prune a random Llama of 100 million weights by several methods, each in a process of its own."""
    rows = []
    for name, word in LARGE.items():
        done = subprocess.run(
            [sys.executable, __file__, "--inner", word], check=True, capture_output=True, text=True
        )
        run = json.loads(done.stdout.strip().splitlines()[-1])
        print(name, run, file=sys.stderr, flush=True)
        rows.append(
            [
                name, f"{run['seconds']:.0f}", f"{run['predicted'] / 1e9:.2f}", f"{run['peak'] / 1e9:.2f}",
                f"{run['predicted'] / run['peak']:.2f}",
            ]
        )  # fmt: skip
    head = [
        "Llama of 100 million weights, 32 x 256 tokens",
        "seconds",
        "GB predicted",
        "GB at the peak",
        "ratio",
    ]
    return table(head, rows)


def inner(word: str) -> None:
    """Prune the large model, and print seconds and memory as JSON."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    before = _peak()
    config = LlamaConfig(
        vocab_size=8192, hidden_size=768, intermediate_size=2048, num_hidden_layers=13,
        num_attention_heads=12, num_key_value_heads=12, max_position_embeddings=512,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    ids = torch.randint(8192, (40, 256))
    task = CausalLM.from_ids(ids)
    blocks = ICBS(share=0.0, batches=Batches(size=16), stage=Stage(blocks=4))
    pruner, limit, memory = {
        "wanda": (OneShot(Wanda()), None, None),
        "sparsegpt": (SparseGPT(), None, None),
        "icbs": (ICBS(averaging=replace(ICBS().averaging, length=2)), "5steps", None),
        "groups": (blocks, "2steps", "4GB"),
    }[word]
    pruner.warm_up()
    begin = time.perf_counter()
    report = prune(model, task, pruner, density=0.5, budget=limit, memory=memory).report
    result = {
        "seconds": time.perf_counter() - begin,
        "predicted": report["memory"]["total"],
        "peak": _peak() - before,
        "weights": sum(p.numel() for p in model.parameters()),
    }
    print(json.dumps(result))


def _peak() -> int:
    """Give the most memory that this process has had, in bytes."""
    return peak_bytes(torch.device("cpu"))


PARTS: dict[str, Callable[..., list[str]]] = {"quality": quality, "cost": cost, "large": large}


def main() -> None:
    """Measure what is asked for, print the tables and, where asked to, put them into the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--densities", type=float, nargs="+", default=list(DENSITIES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--budget", type=int, default=36)
    parser.add_argument("--only", nargs="+", default=[], help="parts of the names of the methods to measure")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--inner", choices=list(LARGE.values()))
    chosen = parser.parse_args()
    if chosen.inner:
        inner(chosen.inner)
        return
    print(machine(), file=sys.stderr)
    for part in chosen.part or list(PARTS):
        arguments = (chosen.densities, chosen.seeds, chosen.budget, chosen.only) if part == "quality" else ()
        lines = PARTS[part](*arguments)
        print("\n".join(lines), flush=True)
        if chosen.write:
            refresh(PAGE, f"lm.py {part}", lines)


if __name__ == "__main__":
    try:
        main()
    except SecateurError as error:
        sys.exit(f"error: {error}")
