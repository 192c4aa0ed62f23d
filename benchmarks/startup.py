"""
How long a fresh process takes: to import the package, for the command's help, and to the first nano picture.

    python benchmarks/startup.py

Medians of some processes, in wall and CPU seconds; of the import, what the statement takes.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time


CLOCKS = "import time; wall, cpu = time.perf_counter(), time.process_time()"
IMPORT = f"{CLOCKS}; import facesnap_diffusers; print(time.perf_counter() - wall, time.process_time() - cpu)"
PICTURE = """
from facesnap_diffusers import load_nano_pipeline, nano_people
pipe = load_nano_pipeline()
pipe("a photo of a person", identity=nano_people()[0].identity, num_inference_steps=4, guidance_scale=1.0)
print("done", flush=True)
"""
STOCK = "from diffusers import StableDiffusionControlNetPipeline; print('done', flush=True)"


def seconds_until_done(code: str) -> tuple[float, float]:
    """Wall seconds from a process's start until it says that it is done, and CPU seconds until it has ended."""
    wall, before = time.perf_counter(), os.times()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        if process.stdout.readline() != "done\n":
            raise SystemExit(f"failed: {code}")
        wall = time.perf_counter() - wall
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, cpu


def seconds(command: list[str]) -> tuple[float, float]:
    """Wall and CPU seconds of a process."""
    wall, before = time.perf_counter(), os.times()
    subprocess.run(command, check=True, capture_output=True)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return time.perf_counter() - wall, cpu


def import_seconds() -> tuple[float, float]:
    output = subprocess.run([sys.executable, "-c", IMPORT], check=True, capture_output=True, text=True).stdout
    wall, cpu = output.split()
    return float(wall), float(cpu)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    cases = {
        "import facesnap_diffusers": import_seconds,
        "facesnap --help": lambda: seconds([sys.executable, "-m", "facesnap_diffusers", "--help"]),
        "first nano picture": lambda: seconds_until_done(PICTURE),
        "of which diffusers' own pipeline class": lambda: seconds_until_done(STOCK),
    }
    print("| | wall, s | CPU, s |\n|---|---:|---:|")
    for name, measure in cases.items():
        measure()  # fills the caches of the file system and of Python
        wall, cpu = (
            statistics.median(values) for values in zip(*(measure() for _ in range(args.rounds)), strict=True)
        )
        print(f"| {name} | {wall:.3f} | {cpu:.3f} |", flush=True)


if __name__ == "__main__":
    main()
