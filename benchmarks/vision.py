"""Image classifiers: quality at several densities, what a stage costs, and time and memory of a larger model.

    SECATEUR_ASSETS=... python benchmarks/vision.py [--part quality | cost | large] [--seeds 5]
        [--densities 0.5 0.3 0.2 0.1] [--mask-budget 30] [--budget 90] [--refit-budget 76] [--only WORD ...]
        [--json FILE] [--device cuda] [--write]

Quality: ResNet-20 on CIFAR-10. The first 3,000 pictures of data/cifar10/cifar10_lossless.npz calibrate, the
other 1,000 evaluate, and beside them the hundred test pictures. Mini-batches are of pictures mirrored and
shifted by up to 4 pixels at random. --mask-budget is for iCBS alone, in seconds; --budget for iCBS with a
refit, of which --refit-budget are the refit's; magnitude with the same refit gets the whole. Rows that are
distilled go by the distance from the trained network's outputs, at a temperature that depends on the density;
so do those with ADMM, a refit that chooses the mask anew.
Cost: stages of 1,000 pictures against a forward and backward pass of the same. Large: a DeiT-small of random
weights and 64 pictures, with --device cuda a DeiT-base and 1,024, every method in a process of its own. Each
result of quality and large is added to the file of --json as soon as it is there, one line each, and what
that file holds is not measured again. With --write the tables of docs/vision.md are replaced.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from common import ROOT, Run, assets, machine, refresh, spread, table
from journal import Journal
from torch import nn

from secateur import (
    ADMM,
    ICBS,
    Classification,
    GradientSteps,
    LeastSquares,
    OneShot,
    SecateurError,
    Successive,
    prune,
)
from secateur.allocation import Global, Uniform
from secateur.capture import mean_gradient
from secateur.core.device import has_fast_bfloat16
from secateur.evaluation import evaluate
from secateur.models import CifarResNet
from secateur.pruners import (
    Averaging,
    Batches,
    GramSwaps,
    Network,
    Pruner,
    Refit,
    Session,
    SparseGPT,
    Stage,
    State,
)
from secateur.runs.memory import free_bytes, peak_bytes
from secateur.scores import Gradient, Magnitude, Wanda

PAGE = ROOT / "docs" / "vision.md"
CALIBRATION = 3000
DENSITIES = (0.5, 0.3, 0.2, 0.1)
# The rate of averaged gradients where a refit follows, which changes the weights that a mask was found for.
CAREFUL = 0.01
# The temperature of distillation where the pruned network can follow the trained one, and the density up to
# which it cannot, where 1 did better: by the guard loss of magnitude's refit, seed 0.
FOLLOWING, LEAST_FOLLOWING = 4.0, 0.1
# The layer-wise methods' calibration pictures, drawn by the seed.
DRAWN = 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ALLOCATIONS = {"equal": Uniform(), "global": Global()}
BOTH = tuple(ALLOCATIONS)
LARGE = {
    "one shot, Wanda": "wanda",
    "SparseGPT": "sparsegpt",
    "iCBS, 3 stages of averaged gradients": "averaged",
    "iCBS, 3 stages of blocks": "blocks",
}
ROUNDS = 5
Found = dict[tuple[str, str, float], list[Run]]


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        pruner: the method.
        refit: what follows.
        limit: seconds of the run; None: until it is done.
        allocations: with which it is run.
        runs: seeds, at most; 1 for what does not depend on them; None: all.
        recalibrate: whether statistics of BatchNorm are estimated anew.
    """

    pruner: Pruner
    refit: Refit | None = None
    limit: float | None = None
    allocations: tuple[str, ...] = BOTH
    runs: int | None = None
    recalibrate: bool = False

    @property
    def settings(self) -> str:
        """All that decides the result but allocation, density and seed."""
        return f"{self.pruner!r} {self.refit!r} {self.limit} {self.recalibrate} {torch.get_num_threads()}"


def cifar_tasks() -> tuple[Classification, Classification]:
    """Give the task, and the same to be evaluated on the test pictures."""
    file = np.load(assets() / "data" / "cifar10" / "cifar10_lossless.npz")

    def part(name: str) -> tuple[torch.Tensor, torch.Tensor]:
        pictures, labels = (torch.from_numpy(file[f"{name}_{kind}"]) for kind in "xy")
        return pictures.permute(0, 3, 1, 2).contiguous(), labels.long()

    pictures, labels = part("train_first4000")
    here, rest = slice(CALIBRATION), slice(CALIBRATION, None)
    kept, beside = (
        Classification.from_arrays(pictures[here], labels[here], evaluation=evaluation, mean=MEAN, std=STD)
        for evaluation in ((pictures[rest], labels[rest]), part("test_first100"))
    )
    return kept.augmented(flip=True, shift=4), beside


def resnet() -> nn.Module:
    """Load the trained ResNet-20 anew: a run changes the model it is given."""
    return CifarResNet(weights=str(assets() / "models" / "resnet20-cifar10.th")).build()


def methods(budget: float, refit: float, mask: float, density: float) -> dict[str, Method]:
    """Give what is compared at a density."""
    follows = density > LEAST_FOLLOWING
    temperature = FOLLOWING if follows else 1.0
    every = Batches(size=CALIBRATION, guard=0)
    swaps, squares, equal = GramSwaps(samples=DRAWN), LeastSquares(samples=DRAWN), ("equal",)
    steps = GradientSteps(time=refit / budget - squares.share)
    both = Successive(squares, steps)
    taught = Successive(squares, replace(steps, temperature=temperature))
    # Near the trained network more pictures are worth their time, and large steps lead away from it.
    chosen = ADMM(samples=2 * DRAWN if follows else DRAWN)
    after = GradientSteps(
        rate=0.005 if follows else 0.01, time=refit / budget - chosen.share, temperature=temperature
    )
    anew = Successive(chosen, after)
    careful = ICBS(averaging=Averaging(rate=CAREFUL))
    return {
        "magnitude": Method(OneShot(Magnitude()), runs=1),
        "gradient": Method(OneShot(Gradient(), every), runs=1),
        "Wanda": Method(OneShot(Wanda(), every), runs=1),
        "Gram swaps": Method(swaps, allocations=equal),
        f"iCBS, {mask:g} s": Method(ICBS(), limit=mask),
        f"iCBS, {mask:g} s, distilled": Method(
            ICBS(averaging=Averaging(temperature=temperature)), limit=mask
        ),
        f"iCBS, {mask:g} s, recalibrated": Method(ICBS(), limit=mask, recalibrate=True),
        "SparseGPT": Method(SparseGPT(samples=DRAWN), allocations=equal),
        "Gram swaps, least-squares refit": Method(swaps, squares, allocations=equal),
        f"magnitude, successive refits, {budget:g} s": Method(OneShot(Magnitude()), both, budget),
        f"gradient, successive refits, {budget:g} s": Method(OneShot(Gradient(), every), both, budget),
        f"Wanda, successive refits, {budget:g} s": Method(OneShot(Wanda(), every), both, budget),
        f"Gram swaps, successive refits, {budget:g} s": Method(swaps, both, budget, equal),
        f"iCBS, {budget - refit:g} s, successive refits, {refit:g} s": Method(careful, both, budget),
        f"magnitude, successive refits, distilled, {budget:g} s": Method(
            OneShot(Magnitude()), taught, budget
        ),
        f"iCBS, {budget - refit:g} s, successive refits, distilled, {refit:g} s": Method(
            careful, taught, budget
        ),
        f"magnitude, ADMM and steps, {budget:g} s": Method(OneShot(Magnitude()), anew, budget),
        f"iCBS, {budget - refit:g} s, ADMM and steps, {refit:g} s": Method(careful, anew, budget),
    }


def quality(chosen: argparse.Namespace, journal: Journal) -> list[str]:
    """Measure every method at every density; print while going on, and give the tables."""
    task, beside = cifar_tasks()
    found: Found = {}
    refit = 0.85 * chosen.budget if chosen.refit_budget is None else chosen.refit_budget
    if not 0 < refit < chosen.budget:
        raise SecateurError("--refit-budget is a part of --budget: give less than that.")
    every = {d: methods(chosen.budget, refit, chosen.mask_budget, d) for d in chosen.densities}
    for name, like in every[chosen.densities[0]].items():
        if chosen.only and not any(word in name for word in chosen.only):
            continue
        for allocation in like.allocations:
            for density in chosen.densities:
                method = every[density][name]
                for seed in range(chosen.seeds)[: method.runs]:
                    run = journal.get(
                        ("quality", name, method.settings, allocation, density, seed),
                        lambda: _measure(task, beside, method, allocation, density, seed),  # noqa: B023
                    )
                    note(found, (name, allocation, density), run)
    return _caption(task, beside) + [
        line
        for allocation in BOTH
        if any(key[1] == allocation for key in found)
        for line in _tables(found, allocation, chosen.densities)
    ]


def _caption(task: Classification, beside: Classification) -> list[str]:
    """Say what the tables show."""
    dense, test = (evaluate(resnet(), each) for each in (task, beside))
    return [
        f"ResNet-20: loss in nats, and per cent of pictures named rightly, on {task.size('evaluation'):,} "
        "pictures that neither mask nor refit saw; the network itself was trained on them, as on those that "
        f"calibrate (dense {_cell([dense])}), so that these figures are in-sample for it. Beside them the "
        f"first {beside.size('evaluation')} test pictures, which nothing saw (dense {_cell([test])}; one "
        "picture is one per cent). Mean ± standard deviation over the seeds, which draw mini-batches, guard "
        f"and the {DRAWN:,} pictures of layer-wise methods; magnitude, gradient and Wanda are the same for "
        "every seed, as they take all calibration pictures. Mini-batches of iCBS and of gradient steps are "
        "mirrored and shifted by up to 4 pixels at random. Layer-wise methods refuse a global allocation.",
        "",
    ]


def _tables(found: Found, allocation: str, densities: list[float]) -> list[str]:
    """Write both tables of an allocation."""
    names = dict.fromkeys(name for name, where, _ in found if where == allocation)
    rows = {name: {d: found[key] for d in densities if (key := (name, allocation, d)) in found}
            for name in names}  # fmt: skip
    rows = dict(sorted(rows.items(), key=lambda item: _first(item[1])["weights"] != "trained"))
    title = {"equal": "the same density in every layer", "global": "all weights compete"}[allocation]
    head = [f"{title}, 1,000 held-out pictures", "kept weights", "seconds", *(f"{d:g}" for d in densities)]
    lines, beside = [], []
    for name, runs in rows.items():
        everything = [run for each in runs.values() for run in each]
        seconds = statistics.mean(run["seconds"] for run in everything)
        cells, test = (
            [_cell(runs[d], part) if d in runs else "" for d in densities] for part in ("", "test ")
        )
        lines.append([name, _first(runs)["weights"], f"{seconds:.1f}", *cells])
        beside.append([name, *test])
    return [
        *table(head, lines),
        "",
        *table([f"{title}, 100 test pictures", *head[3:]], beside),
        "",
    ]


def _first(runs: dict[float, list[Run]]) -> Run:
    """Give one of a method's runs."""
    return next(iter(runs.values()))[0]


def _cell(runs: Sequence[Run], part: str = "") -> str:
    """Write loss and accuracy."""
    accuracy = spread([100 * run[f"{part}accuracy"] for run in runs], 1)
    return f"{spread([run[f'{part}loss'] for run in runs], 3)}, {accuracy} %"


def note(found: Found, key: tuple[str, str, float], run: Run) -> None:
    """Keep a run, and print it."""
    found.setdefault(key, []).append(run)
    name, allocation, density = key
    print(
        f"{density:g}  {allocation:6s}  {name:40s}  {_cell([run])}  test {_cell([run], 'test ')}  "
        f"{run['seconds']:.1f} s",
        file=sys.stderr,
        flush=True,
    )


def _measure(
    task: Classification, beside: Classification, method: Method, allocation: str, density: float, seed: int
) -> Run:
    """Prune once, and give the result."""
    model = resnet()
    method.pruner.warm_up()
    report = prune(
        model,
        task,
        method.pruner,
        density=density,
        allocation=ALLOCATIONS[allocation],
        budget=None if method.limit is None else f"{method.limit:g}s",
        seed=seed,
        refit=method.refit,
        recalibrate=method.recalibrate,
    ).report
    seconds = report["seconds"]["total"]
    if method.limit is None:  # without what the evaluations of the run take
        seconds -= report["seconds"]["evaluate"]
    weights = "trained" if report["weights"] == "mask only" else "changed"
    run = _figures(report["evaluation"]["pruned"], evaluate(model, beside))
    return run | {"seconds": seconds, "weights": weights, "seed": seed}


def _figures(kept: dict[str, float], test: dict[str, float]) -> Run:
    """Put both evaluations together."""
    named = {f"test {name}": test[name] for name in ("loss", "accuracy")}
    return {name: kept[name] for name in ("loss", "accuracy")} | named


def cost(chosen: argparse.Namespace, journal: Journal) -> list[str]:
    """Measure stages of 1,000 pictures against a forward and backward pass of them, in turn."""
    task, _ = cifar_tasks()
    fixed = Batches(size=1000, growth=1.0)
    unguarded = replace(fixed, guard=0)
    kind = ", in bfloat16" if has_fast_bfloat16(torch.device("cpu")) else ""
    stages: dict[str, Pruner] = {
        f"averaged gradients, mini-batches of {samples:,}, with ranking and writing{kind}": ICBS(
            averaging=Averaging(samples=samples, length=length), batches=unguarded
        )
        for samples, length in ((1000, 2), (150, 10))
    }
    for blocks in (4, 8, 12):
        name = f"blocks: tape, {blocks} blocks of 1,024 from all layers, loss measured again"
        stages[name] = ICBS(share=0.0, batches=fixed, stage=Stage(blocks=blocks))
    begun = {name: (pruner, *_begin(task, pruner)) for name, pruner in stages.items()}
    session = _session(task)
    index = torch.arange(1000)
    plain: list[float] = []
    times: dict[str, list[float]] = {name: [] for name in stages}
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        mean_gradient(session.network.model, task, session.batch(index), session.network.layers)
        plain.append(time.perf_counter() - begin)
        for name, (pruner, own, state) in begun.items():
            own.network.write(state.mask)
            begin = time.perf_counter()
            _, outcome = pruner.step(own, state)
            times[name].append((time.perf_counter() - begin) * 1000 / outcome.samples)
    base = statistics.median(plain)
    cells = [["forward and backward pass, gradients of the same layers", "1.00", f"{base:.2f}"]]
    for name, seconds in times.items():
        # Of each round, as the machine may be faster in one than in another.
        ratio = statistics.median(a / b for a, b in zip(seconds, plain, strict=True))
        cells.append([name, f"{ratio:.2f}", f"{statistics.median(seconds):.2f}"])
    return table(["ResNet-20, 1,000 pictures, all 20 layers", "ratio", "seconds"], cells)


def _session(task: Classification) -> Session:
    """Set a run up as far as before its start."""
    network = Network.of(resnet(), task, None)
    budget = Uniform().budget(network.shapes, 0.2, "layer")
    return Session(network, task, budget, seed=0, chunk=task.per_pass)


def _begin(task: Classification, pruner: Pruner) -> tuple[Session, State]:
    """Set a run up, and do its first stage, in which kernels are compiled and gradients compared."""
    session = _session(task)
    pruner.warm_up()
    state, _ = pruner.step(session, pruner.start(session))
    mean_gradient(session.network.model, task, session.batch(torch.arange(8)), session.network.layers)
    return session, state


def large(chosen: argparse.Namespace, journal: Journal) -> list[str]:
    """Prune a transformer of random weights by several methods, each in a process of its own."""
    size, rows, weights, where = _size(chosen.device), [], 0, ""
    for name, word in LARGE.items():
        if chosen.only and not any(part in name for part in chosen.only):
            continue
        key = ("large", chosen.device, word, torch.get_num_threads(), size)
        try:
            run = journal.get(key, lambda: _apart(word, chosen.device))  # noqa: B023
        except subprocess.CalledProcessError as error:
            print(f"{name} failed: {error.stderr.strip().splitlines()[-1:]}", file=sys.stderr, flush=True)
            continue
        print(name, run, file=sys.stderr, flush=True)
        weights, where = run["weights"], run["card"] or "CPU"
        rows.append(
            [
                name, f"{run['seconds']:.0f}",
                *(f"{run[what] / 1e9:.2f}" for what in ("predicted", "peak", "before")),
            ]
        )  # fmt: skip
    head = [
        f"{where}: DeiT-{size['name']}, {weights / 1e6:.1f} million weights in layers, {size['pictures']:,} "
        "pictures of 224 x 224, density 0.5",
        "seconds", "GB predicted", "GB at the peak", "of which before there was a model",
    ]  # fmt: skip
    return table(head, rows)


def _size(device: str) -> dict[str, Any]:
    """Say which transformer is pruned, with how many pictures."""
    if device == "cuda":
        return {"name": "base", "width": 768, "heads": 12, "hidden": 3072, "pictures": 1024}
    return {"name": "small", "width": 384, "heads": 6, "hidden": 1536, "pictures": 64}


def _apart(word: str, device: str) -> Run:
    """Prune in another process, whose peak is its own."""
    command = [sys.executable, __file__, "--inner", word, "--device", device]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.strip().splitlines()[-1])


def inner(word: str, device: str) -> None:
    """Prune the transformer, and print seconds and memory as JSON."""
    size, draw = _size(device), torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    pictures, others = (
        torch.randint(256, (count, 3, 224, 224), dtype=torch.uint8, generator=draw)
        for count in (size["pictures"], 16)
    )
    labels, known = (torch.randint(1000, (len(x),), generator=draw) for x in (pictures, others))
    task = Classification.from_arrays(pictures, labels, evaluation=(others, known), mean=MEAN, std=STD)
    before = peak_bytes(torch.device(device))
    model = _transformer(size).to(device)
    pruner, limit = _methods(task.size("calibration"))[word]
    # On a GPU the records of all layers would not fit: they are made group by group. What torch's allocator
    # keeps beside them is as much as half again.
    bounded = device == "cuda" and word == "blocks"
    memory = f"{int(0.5e-9 * free_bytes(torch.device(device)))}GB" if bounded else None
    pruner.warm_up()
    begin = time.perf_counter()
    run = prune(model, task, pruner, density=0.5, budget=limit, memory=memory)
    report = run.report
    result = {
        "seconds": time.perf_counter() - begin,
        "predicted": report["memory"]["total"],
        "peak": report["memory"]["peak"],
        "before": before,
        "weights": sum(run.mask[layer].numel() for layer in run.mask),
        "steps": report["steps"],
        "card": torch.cuda.get_device_name() if device == "cuda" else "",
    }
    print(json.dumps(result))


def _transformer(size: dict[str, Any]) -> nn.Module:
    """Make a DeiT of random weights."""
    from transformers import DeiTConfig, DeiTForImageClassification

    config = DeiTConfig(
        hidden_size=size["width"], num_attention_heads=size["heads"], intermediate_size=size["hidden"],
        id2label={number: f"LABEL_{number}" for number in range(1000)},
    )  # fmt: skip
    return DeiTForImageClassification(config).eval()


def _methods(samples: int) -> dict[str, tuple[Pruner, str | None]]:
    """Give what the transformer is pruned by; a stage of averaged gradients goes through the pool once."""
    pool = Batches().split(samples, 0)[0].numel()
    length = pool // Averaging().size(pool)
    return {
        "wanda": (OneShot(Wanda()), None),
        "sparsegpt": (SparseGPT(), None),
        "averaged": (ICBS(averaging=Averaging(length=length)), "3steps"),
        "blocks": (ICBS(share=0.0), "3steps"),
    }


PARTS: dict[str, Callable[[argparse.Namespace, Journal], list[str]]] = {
    "quality": quality,
    "cost": cost,
    "large": large,
}


def main() -> None:
    """Measure what is asked for, print the tables and, where asked to, put them into the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", choices=PARTS, action="append")
    parser.add_argument("--densities", type=float, nargs="+", default=list(DENSITIES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--mask-budget", type=float, default=30, help="seconds of iCBS without a refit")
    parser.add_argument("--budget", type=float, default=90, help="seconds of iCBS and its refit together")
    parser.add_argument("--refit-budget", type=float, help="seconds of those that are the refit's")
    parser.add_argument("--only", nargs="+", default=[], help="parts of the names of the methods to measure")
    parser.add_argument("--json", help="file of results: what it holds is not measured again")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="of the large model")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--inner", choices=list(LARGE.values()), help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.inner:
        inner(chosen.inner, chosen.device)
        return
    print(machine(), file=sys.stderr)
    journal = Journal(chosen.json)
    for part in chosen.part or list(PARTS):
        lines = PARTS[part](chosen, journal)
        print("\n".join(lines), flush=True)
        if chosen.write:
            on_gpu = "-cuda" if part == "large" and chosen.device == "cuda" else ""
            refresh(PAGE, f"vision-{part}{on_gpu}", lines)


if __name__ == "__main__":
    try:
        main()
    except SecateurError as error:
        sys.exit(f"error: {error}")
