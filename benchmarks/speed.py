"""
What a call of 25 steps with guidance costs, as a ratio to the plain one: by arithmetic, and measured side by side.

    python benchmarks/speed.py                                  # counts multiplications on shapes: seconds
    python benchmarks/speed.py --measure --side 256 --rounds 5  # and times denoising steps with random weights: minutes

Rows: plain; IP-Adapter FaceID (identity attention); ControlNet; both, the rivals' stack; FaceSnap exact, fast, and fast with
a small FFRNet of rank 128. Arithmetic counts the UNet and what is added to it, in a whole call. Measured are single steps of a
batch of two (both halves of guidance), all methods in turn in each round, weighed by how often a call computes FFRNet.
"""

from __future__ import annotations

import argparse
import statistics
import time
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from facesnap_diffusers import FaceSnapSchedule, FFRNet, load_nano_pipeline, nano_people
from facesnap_diffusers.base_models import UNET_CONFIGS, empty_unet
from facesnap_diffusers.models.attention import IdentityAttention


STEPS = 25
NUM_TOKENS = 16
RANK = 128


def ffrnet_runs(schedule: str | FaceSnapSchedule) -> tuple[int, int]:
    """How often a call of 25 steps with guidance computes FFRNet, and at which batch size: seen on the nano model."""
    pipe = load_nano_pipeline()
    pipe.set_progress_bar_config(disable=True)
    batches: list[int] = []
    handle = pipe.ffrnet.register_forward_pre_hook(lambda net, args: batches.append(len(args[0])))
    pipe(
        "a person",
        identity=nano_people()[0].identity,
        num_inference_steps=STEPS,
        guidance_scale=2.0,
        facesnap_schedule=schedule,
        output_type="latent",
    )
    handle.remove()
    return len(batches), batches[0]


class Parts:
    """A UNet with FFRNet and identity attention, and the inputs of a step at `side` pixels."""

    def __init__(self, family: str, side: int, device: str):
        self.device = device
        if device == "meta":
            self.unet = empty_unet(family)
        else:
            self.unet = UNet2DConditionModel(**UNET_CONFIGS[family]).eval()
        with torch.device(device):
            self.identity_attention = IdentityAttention.from_unet(self.unet)
            self.ffrnet = FFRNet.from_unet(self.unet)
            self.small_ffrnet = FFRNet.from_unet(self.unet, rank=RANK)
        self.context = self.identity_attention.context(self.unet, NUM_TOKENS)
        self.is_xl, self.side = family == "sdxl", side

    def _added(self, batch: int) -> dict[str, torch.Tensor] | None:
        if not self.is_xl:
            return None
        return {
            "text_embeds": torch.zeros(batch, 1280, device=self.device),
            "time_ids": torch.zeros(batch, 6, device=self.device),
        }

    def run_unet(self, identity: bool, batch: int = 2) -> None:
        width, size = self.unet.config.cross_attention_dim, self.side // 8
        self.unet(
            torch.zeros(batch, 4, size, size, device=self.device),
            torch.tensor(500, device=self.device),
            torch.zeros(batch, 77 + (NUM_TOKENS if identity else 0), width, device=self.device),
            cross_attention_kwargs=self.context.as_kwargs() if identity else None,
            added_cond_kwargs=self._added(batch),
        )

    def run_ffrnet(self, net: FFRNet, batch: int) -> None:
        width, size = self.unet.config.cross_attention_dim, self.side // 8
        net(
            torch.zeros(batch, 4, size, size, device=self.device),
            torch.tensor(500, device=self.device),
            torch.zeros(batch, NUM_TOKENS, width, device=self.device),
            torch.zeros(batch, 3, self.side, self.side, device=self.device),
            added_cond_kwargs=self._added(batch),
        )


def pieces(parts: Parts, fast_batch: int) -> dict[str, Any]:
    """What calls are made of, as functions."""
    return {
        "plain": lambda: parts.run_unet(False),
        "identity": lambda: parts.run_unet(True),
        "ffrnet": lambda: parts.run_ffrnet(parts.ffrnet, 2),
        "ffrnet, fast": lambda: parts.run_ffrnet(parts.ffrnet, fast_batch),
        "small ffrnet, fast": lambda: parts.run_ffrnet(parts.small_ffrnet, fast_batch),
    }


def ratios(cost: dict[str, float], fast_runs: int) -> dict[str, float]:
    """Costs of whole calls, relative to the plain one, from those of their pieces."""
    share = fast_runs / STEPS
    return {
        name: value / cost["plain"]
        for name, value in {
            "plain": cost["plain"],
            "IP-Adapter FaceID": cost["identity"],
            "ControlNet": cost["plain"] + cost["ffrnet"],
            "both": cost["identity"] + cost["ffrnet"],
            "FaceSnap exact": cost["identity"] + cost["ffrnet"],
            "FaceSnap fast": cost["identity"] + share * cost["ffrnet, fast"],
            "FaceSnap fast, rank 128": cost["identity"] + share * cost["small ffrnet, fast"],
        }.items()
    }


@torch.no_grad()
def count(family: str, fast_runs: int, fast_batch: int) -> dict[str, float]:
    """Ratios by multiplications, at the family's own size."""
    parts = Parts(family, 1024 if family == "sdxl" else 512, "meta")
    cost = {}
    for name, run in pieces(parts, fast_batch).items():
        with FlopCounterMode(display=False) as counter:
            run()
        cost[name] = float(counter.get_total_flops())
    return ratios(cost, fast_runs)


@torch.no_grad()
def measure(family: str, side: int, rounds: int, fast_runs: int, fast_batch: int) -> list[dict[str, float]]:
    """Ratios by process time, one for each round, in which all pieces run in turn."""
    parts = Parts(family, side, "cpu")
    functions = pieces(parts, fast_batch)
    results = []
    for number in range(rounds + 1):
        cost = {}
        for name, run in functions.items():
            start = time.process_time()
            run()
            cost[name] = time.process_time() - start
        if number > 0:  # the first warms up
            results.append(ratios(cost, fast_runs))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=["sd1", "sdxl"], default=["sd1", "sdxl"])
    parser.add_argument("--measure", action="store_true", help="also time it, on the CPU with random weights")
    parser.add_argument("--side", type=int, default=256, help="of the measured images, in pixels")
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    fast_runs, fast_batch = ffrnet_runs("fast")
    exact_runs, exact_batch = ffrnet_runs("exact")
    print(
        f"FFRNet runs in {STEPS} steps: exact {exact_runs} of batch {exact_batch}, fast {fast_runs} of {fast_batch}\n"
    )
    for family in args.families:
        counted = count(family, fast_runs, fast_batch)
        measured = measure(family, args.side, args.rounds, fast_runs, fast_batch) if args.measure else []
        print(f"| {family} | by arithmetic | measured at {args.side} px: median (least–greatest) |\n|---|---|---|")
        for name, value in counted.items():
            times = [result[name] for result in measured]
            cell = f"{statistics.median(times):.2f} ({min(times):.2f}–{max(times):.2f})" if times else "–"
            print(f"| {name} | {value:.3f} | {cell} |")
        print()


if __name__ == "__main__":
    main()
