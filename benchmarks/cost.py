"""What a stage costs and what limits it: stages of averaged gradients, block stages, and a profile of each.

    SECATEUR_ASSETS=... python benchmarks/cost.py [--repeats 3] [--only averaging | blocks | profile]
        [--write]

Times are those of the fastest of several repeats, alternatives in turn, each shape having been
warmed up: oneDNN compiles for every shape it has not seen. A stage always starts from the same
state, so that repeats do the same work. Everything beside 784-512-512-10 is a multi-layer perceptron of
random weights. With --write (and all parts) the tables of docs/method.md are replaced; two minutes.
"""

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from common import DENSITY, ROOT, garment_model, garment_task, machine, parted, refresh, table
from torch import nn
from torch.profiler import ProfilerActivity, profile

from secateur import ICBS, Classification, SecateurError
from secateur.allocation import Uniform
from secateur.core.task import Batch
from secateur.models import MLP
from secateur.pruners import Averaging, Batches, Network, Session, Stage, State

PAGE, MARK = ROOT / "docs" / "method.md", "cost.py"
SAMPLES = (64, 125, 250, 500, 1000, 2000)
WIDTHS = (256, 512, 1024, 2048)
USUAL = 500
BLOCK_SAMPLES = (500, 2000, 8000)
BLOCK_SIZES = (256, 1024, 4096)
BLOCKS = 3
PLAIN_PASSES = 20
TOP = 8

Seconds = dict[str, float]


@dataclass(frozen=True)
class Job:
    """A stage that can be run again and again: a pruner at the start of a run."""

    pruner: ICBS
    session: Session
    state: State

    @classmethod
    def begin(cls, pruner: ICBS, model: nn.Module, task: Classification) -> "Job":
        """Draw the one-shot mask."""
        network = Network(model)
        session = Session(network, task, Uniform().budget(network.shapes, DENSITY, "layer"), seed=0)
        return cls(pruner, session, pruner.start(session))

    def run(self) -> Seconds:
        """Run the stage, and give its seconds by activity, under "all" those of all, and its blocks."""
        self.session.network.write(self.state.mask)
        before, begin = self.session.seconds.copy(), time.perf_counter()
        _, outcome = self.pruner.step(self.session, self.state)
        took = time.perf_counter() - begin
        spent = {name: seconds - before[name] for name, seconds in self.session.seconds.items()}
        return spent | {"all": took, "blocks": float(outcome.blocks)}


def fastest(jobs: Mapping[tuple, Callable[[], Seconds]], repeats: int) -> dict[tuple, Seconds]:
    """Run all jobs in turn, several times, and keep the fastest run of each."""
    best: dict[tuple, Seconds] = {}
    for _ in range(repeats):
        for name, job in jobs.items():
            found = job()
            if name not in best or found["all"] < best[name]["all"]:
                best[name] = found
    return best


def averaging_job(model: nn.Module, task: Classification, samples: int, bfloat16: bool) -> Job:
    """Prepare a stage of averaged gradients, its shapes warmed up."""
    averaging = Averaging(samples=samples, bfloat16=bfloat16)
    job = Job.begin(ICBS(averaging=averaging), model, task)
    replace(job, pruner=ICBS(averaging=replace(averaging, length=2))).run()
    return job


def plain_job(job: Job, samples: int, bfloat16: bool) -> Callable[[], Seconds]:
    """Prepare what the pass is compared with: the usual lines of torch, on a batch at hand."""
    model, batch = job.session.network.model, job.session.batch(torch.arange(samples))

    def run() -> Seconds:
        begin = time.perf_counter()
        for _ in range(PLAIN_PASSES):
            plain_pass(model, batch, bfloat16)
        model.zero_grad(set_to_none=True)
        return {"all": (time.perf_counter() - begin) / PLAIN_PASSES}

    plain_pass(model, batch, bfloat16)
    return run


def plain_pass(model: nn.Module, batch: Batch, bfloat16: bool) -> None:
    """Pass forwards and backwards once."""
    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        outputs = model(batch.inputs)
    nn.functional.cross_entropy(outputs.float(), batch.targets).backward()


def averaging_table(
    head: Sequence[str],
    cases: Mapping[tuple[str, ...], tuple[Callable[[], nn.Module], int]],
    task: Classification,
    repeats: int,
) -> list[str]:
    """Time stages of averaged gradients: a row a case of model and samples, bfloat16 beside float32."""
    jobs: dict[tuple, Callable[[], Seconds]] = {}
    for cells, (make, samples) in cases.items():
        for fast in (True, False):
            job = averaging_job(make(), task, samples, fast)
            jobs[cells, fast, "stage"] = job.run
            jobs[cells, fast, "plain"] = plain_job(job, samples, fast)
    best = fastest(jobs, repeats)
    rows = []
    for cells in cases:
        stage, slow = best[cells, True, "stage"], best[cells, False, "stage"]
        length = Averaging().length
        shown = [f"{1000 * stage[name] / length:.2f}" for name in ("all", "capture", "select", "evaluate")]
        against = [
            f"{best[cells, fast, 'stage']['capture'] / length / best[cells, fast, 'plain']['all']:.2f}"
            for fast in (True, False)
        ]
        rows.append([*cells, *shown, against[0], f"{slow['all'] / stage['all']:.2f}", against[1]])
    columns = ["ms a mini-batch", "of it the pass", "mask and scores", "guard", "pass / plain torch's"]
    return table([*head, *columns, "float32 / bfloat16", "float32: pass / plain torch's"], rows)


def averaging(task: Classification, repeats: int) -> list[str]:
    """Write what stages of averaged gradients cost, by samples and by weights."""
    by_samples = {(f"{samples:,}",): (garment_model, samples) for samples in SAMPLES}
    models = {width: MLP((784, width, width, 10)) for width in WIDTHS}
    by_weights = {
        (f"{width:,}", f"{(784 + width + 10) * width / 1e6:.2f} M"): (model.build, USUAL)
        for width, model in models.items()
    }
    return [
        f"Stages of averaged gradients, {Averaging().length} mini-batches each, in bfloat16, and in float32 "
        "beside it. The pass, forwards and backwards, includes fetching the samples, plain torch's does not. "
        "784-512-512-10, by samples in a mini-batch:",
        "",
        *averaging_table(["samples"], by_samples, task, repeats),
        "",
        f"784-w-w-10, by weights, {USUAL} samples in a mini-batch:",
        "",
        *averaging_table(["w", "weights"], by_weights, task, repeats),
    ]


def block_job(task: Classification, samples: int, size: int, blocks: int) -> Job:
    """Prepare a block stage, warmed up."""
    pruner = ICBS(
        share=0.0, stage=Stage(blocks=blocks, block_size=size), batches=Batches(size=samples, growth=1.0)
    )
    pruner.warm_up()
    job = Job.begin(pruner, garment_model(), task)
    replace(job, pruner=replace(pruner, stage=replace(pruner.stage, blocks=1))).run()
    return job


def blocks(task: Classification, repeats: int) -> list[str]:
    """Write what block stages cost, by samples and block size."""
    jobs: dict[tuple, Callable[[], Seconds]] = {
        (samples, size): block_job(task, samples, size, BLOCKS).run
        for samples in BLOCK_SAMPLES
        for size in BLOCK_SIZES
    }
    rows = []
    for (samples, size), found in fastest(jobs, repeats).items():
        each = {name: found[name] / max(1, found["blocks"]) for name in ("select", "solve")}
        whole = [found["all"], found["capture"], found["evaluate"]]
        shown = [f"{seconds:.3f}" for seconds in (*whole, sum(each.values()), *each.values())]
        rows.append([f"{samples:,}", f"{size:,}", f"{found['blocks']:.0f}", *shown])
    head = ["samples", "block size", "blocks", "a stage, s", "of it capture", "evaluate"]
    return [
        "Block stages (`share = 0`), 784-512-512-10; solving includes forming the matrix:",
        "",
        *table([*head, "a block, s", "of it select", "solve"], rows),
    ]


def profiled(job: Job) -> list[str]:
    """Profile one stage: the operators that take the most time of their own, as shares of all of it."""
    job.run()
    with profile(activities=[ProfilerActivity.CPU]) as found:
        took = 1e6 * job.run()["all"]
    events = sorted(found.key_averages(), key=lambda event: -event.self_cpu_time_total)
    outside = took - sum(event.self_cpu_time_total for event in events)
    rows = [
        [f"`{event.key}`", f"{100 * event.self_cpu_time_total / took:.1f}", f"{event.count:,}"]
        for event in events[:TOP]
    ]
    rest = sum(event.self_cpu_time_total for event in events[TOP:])
    rows += [["other operators", f"{100 * rest / took:.1f}", f"{sum(e.count for e in events[TOP:]):,}"]]
    rows += [["outside operators: Python, NumPy, numba", f"{100 * outside / took:.1f}", ""]]
    return table(["operator", "% of the stage", "calls"], rows)


def profiles(task: Classification, repeats: int) -> list[str]:
    """Write where the time of one stage of each kind goes."""
    usual = Stage()
    return [
        f"A stage of averaged gradients, {USUAL} samples in a mini-batch, by torch.profiler:",
        "",
        *profiled(averaging_job(garment_model(), task, USUAL, bfloat16=True)),
        "",
        f"A block stage, 2,000 samples, {usual.blocks} blocks of {usual.block_size:,}:",
        "",
        *profiled(block_job(task, 2000, usual.block_size, usual.blocks)),
    ]


def main() -> None:
    """Time what was asked for and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parts = {"averaging": averaging, "blocks": blocks, "profile": profiles}
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--only", choices=parts, help="a part alone")
    parser.add_argument("--write", action="store_true", help="replace the tables of docs/method.md")
    chosen = parser.parse_args()
    if chosen.write and chosen.only:
        parser.error("--write takes all parts")
    if chosen.write:
        parted(PAGE, MARK)  # better before the runs than after them
    task, here = garment_task(), machine()
    lines = [f"{here['cores']} cores ({here['cpu']}), torch {here['torch']}, milliseconds or seconds:"]
    for name, part in parts.items():
        if chosen.only in (name, None):
            found = part(task, chosen.repeats)
            print("\n".join(["", *found]), flush=True)
            lines += ["", *found]
    if chosen.write:
        refresh(PAGE, MARK, lines)


if __name__ == "__main__":
    try:
        main()
    except SecateurError as error:
        sys.exit(f"error: {error}")
