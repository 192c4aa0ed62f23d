"""What each part of the identity loss brings: adapters of equal steps from one start, compared by `facesnap eval`.

    export PYTHONPATH=$PWD
    python objectives.py                 # after adapter.yaml has left adapters/facesnap

Each goes through likeness.yaml without its comparison with true pictures: the diffusion loss alone; an identity loss on
one-step predictions; on samples of four steps; against the target photo instead of the reference; with InfoNCE besides; with
PuLID's alignment losses besides. Those named in SEEDS are trained with a second seed, too, for the spread. Goes on where it was
stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from warm_start import SECOND, compare, parse_settings, train
from workspace import add_work_dir


FEW_STEPS = {"identity_loss.mode": "few_step"}
TARGET = {**FEW_STEPS, "identity_loss.reference": "target"}
CONTRASTIVE = {**TARGET, "identity_loss.contrastive": 0.1}
ARMS: dict[str, dict[str, Any]] = {
    "diffusion": {"identity_loss.weight": 0.0},
    "one-step": {"identity_loss.mode": "prediction"},
    "few-step": FEW_STEPS,
    "target": TARGET,
    "infonce": CONTRASTIVE,
    "alignment": {**CONTRASTIVE, "loss.align_semantic": 0.6, "loss.align_layout": 0.1},
}
SEEDS = {"few-step": (0, 1), "target": (0, 1), "infonce": (0, 1)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--steps", type=int, default=300, help="of each adapter")
    parser.add_argument("--arm", action="append", choices=list(ARMS), help="only this one; may be given several times")
    parser.add_argument("--set", action="append", default=[], help="for all runs, as in facesnap train")
    args = parser.parse_args()
    work_dir = Path(args.work_dir)
    common = {"loss.extra": None, "seed": 0, **parse_settings(args.set)}

    adapters = {"start": "adapters/facesnap/adapter"}
    for arm in args.arm or ARMS:
        for seed in SEEDS.get(arm, (0,)):
            output = f"adapters/objective-{arm}-{seed}"
            train(work_dir, SECOND, output, args.steps, {**common, **ARMS[arm], "seed": seed})
            adapters[f"{arm}, seed {seed}"] = f"{output}/adapter"
    compare(work_dir, "objectives", adapters)


if __name__ == "__main__":
    main()
