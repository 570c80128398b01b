"""What each setting of the default method is worth, one change at a time.

    SECATEUR_ASSETS=... python benchmarks/settings.py [--seconds 15] [--seeds 2] [--write]

The Garment Classifier at density 0.1 in every layer, all settings one after the other in one
process. With --write the table replaces that of docs/method.md.
"""

import argparse
import sys
from dataclasses import replace

from garment import ROOT, assets, measure, refresh, row

from secateur import ICBS, Classification, SecateurError
from secateur.curvature import EmpiricalFisher, Fisher
from secateur.pruners import Batches, Stage, Trust
from secateur.selection import LargestGain, RoundRobin
from secateur.solvers import BestOf, Greedy, Polish, Swaps, TabuSearch
from secateur.tasks import Idx

DEFAULT = ICBS()
SETTINGS = {
    "default": DEFAULT,
    "gradient multiplier 1": replace(DEFAULT, stage=Stage(multiplier=1.0)),
    "gradient multiplier 0.4": replace(DEFAULT, stage=Stage(multiplier=0.4)),
    "4 blocks a stage": replace(DEFAULT, stage=Stage(blocks=4)),
    "24 blocks a stage": replace(DEFAULT, stage=Stage(blocks=24)),
    "blocks of 256": replace(DEFAULT, stage=Stage(blocks=48, block_size=256)),
    "blocks of 2,048": replace(DEFAULT, stage=Stage(blocks=6, block_size=2048)),
    "one layer a block, round robin": replace(DEFAULT, order=RoundRobin()),
    "one layer a block, largest gain": replace(DEFAULT, order=LargestGain()),
    "empirical Fisher": replace(DEFAULT, curvature=EmpiricalFisher()),
    "two labels a sample": replace(DEFAULT, curvature=Fisher(draws=2)),
    "swaps from the incumbent only": replace(DEFAULT, solver=Swaps()),
    "with tabu search": replace(DEFAULT, solver=BestOf((Swaps(), Polish(Greedy()), TabuSearch(1000)))),
    "ridge 0.01": replace(DEFAULT, trust=Trust(ridge=0.01)),
    "no trust region": replace(DEFAULT, trust=Trust(adapt=False)),
    "batches of 2,000 throughout": replace(DEFAULT, batches=Batches(growth=1.0)),
    "batches of 16,000 throughout": replace(DEFAULT, batches=Batches(size=16_000)),
}


def main() -> None:
    """Run every setting and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--seconds", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--write", action="store_true")
    chosen = parser.parse_args()
    task = Classification.from_source(Idx(str(assets() / "data" / "fashion-mnist"), flat=True))
    lines = [
        "| setting | seconds | steps | test accuracy, % | test loss | seeds |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for name, pruner in SETTINGS.items():
        pruner.warm_up()
        runs = [measure(task, pruner, f"{chosen.seconds}s", seed) for seed in range(chosen.seeds)]
        lines.append(row(name, runs))
        print(lines[-1], flush=True)
    if chosen.write:
        refresh(ROOT / "docs" / "method.md", "settings.py", lines)


if __name__ == "__main__":
    try:
        main()
    except SecateurError as error:
        sys.exit(f"error: {error}")
