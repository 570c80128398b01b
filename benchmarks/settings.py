"""What each setting of the default method is worth, one change at a time.

    SECATEUR_ASSETS=... python benchmarks/settings.py [--seconds 3] [--seeds 3] [--write]

The Garment Classifier at density 0.1 in every layer, all settings one after the other in one
process, those of averaged gradients first, then those of block stages alone (share 0, in twice the
time, one seed). With --write the tables replace those of docs/method.md.
"""

import argparse
import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from common import ROOT, garment_task, mean_seconds, measure, refresh, results, row, table

from secateur import ICBS, Classification, LearnedMask, SecateurError
from secateur.curvature import EmpiricalFisher, Fisher
from secateur.pruners import Averaging, Batches, Pruner, Stage, Trust
from secateur.scores import Gradient, Random, Wanda
from secateur.selection import GaussSouthwell, LargestGain, RoundRobin
from secateur.solvers import BestOf, Greedy, Polish, Swaps, TabuSearch

BLOCKS = ICBS(share=0.0)


def averaged(**changes: Any) -> ICBS:
    """Give the default with other settings of averaging."""
    return ICBS(averaging=Averaging(**changes))


AVERAGING: dict[str, Pruner] = {
    "default": ICBS(),
    "rate 0.01": averaged(rate=0.01),
    "rate 0.1": averaged(rate=0.1),
    "no momentum": averaged(momentum=0.0),
    "momentum 0.8": averaged(momentum=0.8),
    "momentum 0.95": averaged(momentum=0.95),
    "nothing forgotten": averaged(forget=0.0),
    "forget 0.01": averaged(forget=0.01),
    "linear decay": averaged(anneal="linear"),
    "constant rate": averaged(anneal="constant"),
    "unit of the first mini-batch": averaged(unit="first"),
    "the same, rate 0.05, nothing forgotten (LearnedMask)": LearnedMask(),
    "mini-batches of 125": averaged(samples=125),
    "mini-batches of 250": averaged(samples=250),
    "mini-batches of 1,000": averaged(samples=1000),
    "mini-batches of 4,000": averaged(samples=4000),
    "float32": averaged(bfloat16=False),
    "no guard": ICBS(batches=Batches(guard=0)),
    "blocks in the last tenth of the time": ICBS(share=0.9),
    "blocks in the last half": ICBS(share=0.5),
    "start by Wanda": ICBS(init=Wanda()),
    "start by gradient": ICBS(init=Gradient()),
    "start at random": ICBS(init=Random()),
}
EXCHANGING: dict[str, Pruner] = {
    "blocks alone": BLOCKS,
    "gradient multiplier 1": replace(BLOCKS, stage=Stage(multiplier=1.0)),
    "gains predicted for each block": replace(BLOCKS, stage=Stage(refresh=1)),
    "4 blocks a stage": replace(BLOCKS, stage=Stage(blocks=4)),
    "24 blocks a stage": replace(BLOCKS, stage=Stage(blocks=24)),
    "blocks of 256": replace(BLOCKS, stage=Stage(blocks=48, block_size=256)),
    "blocks of 4,096": replace(BLOCKS, stage=Stage(blocks=3, block_size=4096)),
    "Gauss-Southwell by Lipschitz constants": replace(BLOCKS, selector=GaussSouthwell("lipschitz")),
    "Gauss-Southwell by the gradient": replace(BLOCKS, selector=GaussSouthwell("gradient")),
    "one layer a block, round robin": replace(BLOCKS, order=RoundRobin()),
    "one layer a block, largest gain": replace(BLOCKS, order=LargestGain()),
    "empirical Fisher": replace(BLOCKS, curvature=EmpiricalFisher()),
    "two labels a sample": replace(BLOCKS, curvature=Fisher(draws=2)),
    "swaps from the incumbent only": replace(BLOCKS, solver=Swaps()),
    "with tabu search": replace(BLOCKS, solver=BestOf((Swaps(), Polish(Greedy()), TabuSearch(1000)))),
    "no trust region": replace(BLOCKS, trust=Trust(adapt=False)),
    "batches of 2,000 throughout": replace(BLOCKS, batches=Batches(growth=1.0)),
    "batches of 16,000 throughout": replace(BLOCKS, batches=Batches(size=16_000)),
}


def compare(settings: Mapping[str, Pruner], task: Classification, seconds: int, seeds: int) -> list[str]:
    """Run every setting, and give the table."""
    lines = table(["setting", "seconds", "stages", "test accuracy, %", "test loss", "seeds"], [])
    print("\n".join(lines), flush=True)
    for name, pruner in settings.items():
        pruner.warm_up()
        runs = [measure(task, pruner, f"{seconds}s", seed) for seed in range(seeds)]
        lines.append(row([name, mean_seconds(runs), str(runs[0]["steps"]), *results(runs)]))
        print(lines[-1], flush=True)
    return lines


def main() -> None:
    """Compare the settings of either kind of stage."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    task = garment_task()
    tables = {
        "settings.py": compare(AVERAGING, task, chosen.seconds, chosen.seeds),
        "settings.py blocks": compare(EXCHANGING, task, 2 * chosen.seconds, 1),
    }
    if chosen.write:
        for mark, lines in tables.items():
            refresh(ROOT / "docs" / "method.md", mark, lines)


if __name__ == "__main__":
    try:
        main()
    except SecateurError as error:
        sys.exit(f"error: {error}")
