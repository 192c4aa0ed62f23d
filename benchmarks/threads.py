"""
Calls of one pipeline from several threads, with different people, prompts, seeds, sizes and scales: how many of the images
differ from those of the same calls made one after the other (there should be none).

    python benchmarks/threads.py --calls 2000
    python benchmarks/threads.py --setup lora --setup photos --calls 200
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import concurrent_calls


INTERVALS = (5e-3, 1e-5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--setup", action="append", choices=concurrent_calls.SETUPS, help="one_pipeline by default")
    options = parser.parse_args()
    torch.set_num_threads(1)
    failed = False
    for name in options.setup or ["one_pipeline"]:
        pipes, calls = concurrent_calls.SETUPS[name](options.calls)
        calls[0](pipes[0])
        start = time.perf_counter()
        expected = [call(pipes[i % len(pipes)]) for i, call in enumerate(calls)]
        print(f"{name}: {len(calls)} calls alone in {time.perf_counter() - start:.0f} s", flush=True)
        for interval in INTERVALS:
            start = time.perf_counter()
            wrong = concurrent_calls.wrong_calls(pipes, calls, expected, options.threads, interval)
            seconds = time.perf_counter() - start
            print(
                f"  {options.threads} threads, switch interval {interval:g} s: {len(wrong)} wrong, {seconds:.0f} s",
                flush=True,
            )
            print(*wrong[:5], sep="\n", end="\n" if wrong else "")
            failed |= bool(wrong)
    sys.exit(failed)


if __name__ == "__main__":
    main()
