"""
Errors at every call of a module in a call of the pipeline, and Ctrl-C at random moments of it: fails if anything stays.

    python benchmarks/interrupted_calls.py --interrupts 1000
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch


sys.path[:0] = [str(Path(__file__).parents[1] / "tests"), str(Path(__file__).parents[1] / "tests" / "pipelines")]

import test_interrupted_calls as calls  # noqa: E402
import tiny  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--interrupts", type=int, default=1000, help="in all, a third of them for each kind of call")
    parser.add_argument("--step", type=int, default=1, help="raise at every so many calls of a module")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    for name in calls.CALLS:
        calls.generate(pipe, name)
    for name in calls.CALLS:
        count = -(-options.interrupts // len(calls.CALLS))
        met = calls.interrupts_at_random_moments(pipe, name, count)
        print(
            f"{name}: Ctrl-C at {count} moments, {met} of them before the end of the call: nothing stays", flush=True
        )
    for name in calls.CALLS:
        raised = calls.errors_everywhere(pipe, name, options.step)
        print(f"{name}: errors at {raised} calls of modules: nothing stays", flush=True)


if __name__ == "__main__":
    main()
