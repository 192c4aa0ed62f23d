"""
What a call of 25 steps with guidance costs, as a ratio to the plain one: by arithmetic, and whole calls side by side.

    python benchmarks/speed.py                                     # counts multiplications on shapes: seconds
    python benchmarks/speed.py --measure --side 512 --width 1      # and times whole calls with random weights: hours
    python benchmarks/speed.py --measure --side 256 --width 0.25   # of nets a quarter as wide, beside their arithmetic

Rows: plain; diffusers' IP-Adapter FaceID; its ControlNet; both, the rivals' stack; FaceSnap exact, fast, and fast with a small
FFRNet (rank 128 at full width). Arithmetic counts the UNet and what is added to it. Measured are calls without text encoders' and
autoencoder's share (random latents come out). The calls of a round run side by side, a step each in turn, so that a machine that
becomes slower does so for all of them; counted are CPU seconds, so that other processes count little, with wall time beside them.
"""

from __future__ import annotations

import argparse
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from random_models import NUM_TOKENS, ROWS, base_pipeline, calls, rank_of, unet_config
from torch.utils.flop_counter import FlopCounterMode

from facesnap_diffusers import FaceSnapSchedule, FFRNet, load_nano_pipeline, nano_people
from facesnap_diffusers.models.attention import IdentityAttention


STEPS = 25


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


@torch.no_grad()
def count(family: str, side: int, width: float = 1.0) -> dict[str, float]:
    """Ratios by multiplications of the nets of a whole call, counted on shapes."""
    size, is_xl = side // 8, family == "sdxl"
    (exact_runs, exact_batch), (fast_runs, fast_batch) = ffrnet_runs("exact"), ffrnet_runs("fast")
    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config(family, width))
        identity_attention = IdentityAttention.from_unet(unet)
        full, small = FFRNet.from_unet(unet), FFRNet.from_unet(unet, rank=rank_of(width))
        context, channels = identity_attention.context(unet, NUM_TOKENS), unet.config.cross_attention_dim

        def added(batch: int) -> dict[str, torch.Tensor] | None:
            return {"text_embeds": torch.zeros(batch, 1280), "time_ids": torch.zeros(batch, 6)} if is_xl else None

        def flops(net: Any, *inputs: torch.Tensor, **kwargs: Any) -> float:
            with FlopCounterMode(display=False) as counter:
                net(*inputs, **kwargs)
            return float(counter.get_total_flops())

        def unet_steps(tokens: int, **kwargs: Any) -> tuple[float, float]:
            """The first step of a call, and each further one, with the same text."""
            noise, text = torch.zeros(2, 4, size, size), torch.zeros(2, 77 + tokens, channels)
            step = (unet, noise, torch.tensor(500), text)
            return flops(*step, added_cond_kwargs=added(2), **kwargs), flops(
                *step, added_cond_kwargs=added(2), **kwargs
            )

        def control_step(net: FFRNet, batch: int) -> float:
            noise, tokens = torch.zeros(batch, 4, size, size), torch.zeros(batch, NUM_TOKENS, channels)
            embedding = net.embed_landmarks(torch.zeros(batch, 3, side, side))
            return flops(net, noise, torch.tensor(500), tokens, embedding, added_cond_kwargs=added(batch))

        def embedding(batch: int) -> float:
            return flops(full.embed_landmarks, torch.zeros(batch, 3, side, side))

        (plain_step, _), (with_tokens, with_kept) = (
            unet_steps(0),
            unet_steps(NUM_TOKENS, cross_attention_kwargs=context.as_kwargs()),
        )
        # FaceSnap keeps keys and values of the identity tokens, diffusers' adapter computes them at every step
        plain, faceid, identity = STEPS * plain_step, STEPS * with_tokens, with_tokens + (STEPS - 1) * with_kept
        rival = STEPS * (control_step(full, 2) + embedding(2))  # at every step
        exact = exact_runs * control_step(full, exact_batch) + embedding(exact_batch)  # once
        fast, fast_small = (fast_runs * control_step(net, fast_batch) + embedding(fast_batch) for net in (full, small))
    costs = (
        plain,
        faceid,
        plain + rival,
        faceid + rival,
        identity + exact,
        identity + fast,
        identity + fast_small,
    )
    return {row: cost / plain for row, cost in zip(ROWS, costs, strict=True)}


class InTurn:
    """Runs functions in threads of their own, each until its next step, in turn; and counts the CPU and wall seconds of each."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.waiting: list[str] = []  # the first one runs
        self.seconds: dict[str, tuple[float, float]] = {}
        self.errors: list[BaseException] = []

    def run(self, functions: dict[str, Callable[[], Any]]) -> dict[str, tuple[float, float]]:
        self.waiting, self.seconds = list(functions), dict.fromkeys(functions, (0.0, 0.0))
        threads = [threading.Thread(target=self._run, args=item, name=item[0]) for item in functions.items()]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.errors:
            raise self.errors[0]
        return self.seconds

    def step(self, pipe: Any, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
        """A callback at the end of each step."""
        self._pass_on(is_done=False)
        self._wait()
        return values

    def _run(self, name: str, function: Callable[[], Any]) -> None:
        self._wait()
        try:
            function()
        except BaseException as error:
            self.errors.append(error)
        self._pass_on(is_done=True)

    def _wait(self) -> None:
        with self.changed:
            self.changed.wait_for(lambda: self.waiting[0] == threading.current_thread().name)
        self.since = time.thread_time(), time.perf_counter()

    def _pass_on(self, is_done: bool) -> None:
        now = time.thread_time(), time.perf_counter()
        with self.changed:
            name = self.waiting.pop(0)
            cpu, wall = (
                old + end - start for old, end, start in zip(self.seconds[name], now, self.since, strict=True)
            )
            self.seconds[name] = cpu, wall
            if not is_done:
                self.waiting.append(name)
            self.changed.notify_all()


def measure(
    family: str, side: int, width: float, rounds: int, rows: Sequence[str]
) -> list[dict[str, tuple[float, float]]]:
    """CPU and wall seconds of whole calls, one result for each round, in which the rows run step by step in turn."""
    in_turn = InTurn()
    base = base_pipeline(family, width)
    functions = calls(base, side, STEPS, rank_of(width), tuple(rows), callback_on_step_end=in_turn.step)
    results = []
    for number in range(rounds):
        results.append(in_turn.run(functions))
        for row, (cpu, wall) in results[-1].items():
            print(f"round {number + 1}, {row}: {cpu:.1f} s CPU, {wall:.1f} s", flush=True)
    return results


def spread(results: list[dict[str, tuple[float, float]]], row: str, clock: int) -> str:
    """The median of the ratios of a row, with the least and the greatest."""
    found = [result[row][clock] / result["plain"][clock] for result in results if row in result]
    return f"{statistics.median(found):.3f} ({min(found):.2f}–{max(found):.2f})" if found else "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=["sd1", "sdxl"], default=["sd1", "sdxl"])
    parser.add_argument("--measure", action="store_true", help="also time it, on the CPU with random weights")
    parser.add_argument("--side", type=int, help="of the images, in pixels; the family's own by default")
    parser.add_argument(
        "--width", type=float, choices=[0.25, 0.5, 1.0], default=1.0, help="factor of the nets' channels"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS, metavar="ROW", help="only these, and plain")
    args = parser.parse_args()
    rows = [row for row in ROWS if row == "plain" or row in args.rows]
    torch.set_num_threads(1)  # so that a thread's CPU seconds are those of its call

    for family in args.families:
        side = args.side or (1024 if family == "sdxl" else 512)
        counted = count(family, side, args.width)
        measured = measure(family, side, args.width, args.rounds, rows) if args.measure else []
        print(f"\n{family}, {side} px, width × {args.width:g}, {len(measured)} rounds: median (least–greatest)\n")
        print("| | by arithmetic | CPU time | wall time |\n|---|---:|---:|---:|")
        for row, value in counted.items():
            print(f"| {row} | {value:.3f} | {spread(measured, row, 0)} | {spread(measured, row, 1)} |")


if __name__ == "__main__":
    main()
