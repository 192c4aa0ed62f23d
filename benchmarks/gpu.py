"""
What a GPU makes of this package, in eight minutes and with nothing to download: first whether it is right, then how long calls
and training steps take, and how much memory. Prints Markdown.

    python benchmarks/gpu.py > gpu.md                    # CUDA
    python benchmarks/gpu.py --device cpu --tiny         # the same on tiny nets, to see that the script runs

Weights are random. Ends with status 1 if a check fails. Measurements that the time does not allow are left out, and named.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from random_models import ROWS, base_pipeline, calls, rank_of, tiny, unet_config

from facesnap_diffusers import FFRNet, draw_landmarks, load_landmark_predictor
from facesnap_diffusers.models.attention import IdentityAttention
from facesnap_diffusers.models.mixer import FacialAttributeMixer
from facesnap_diffusers.training.training_config import load_config


CONFIGS = Path(__file__).resolve().parents[1] / "examples/training"
STEPS = 25


class Report:
    """Prints rows as they come, keeps the time, and knows whether a check has failed."""

    def __init__(self, seconds: float):
        self.ends = time.monotonic() + seconds
        self.failed: list[str] = []

    @property
    def has_time(self) -> bool:
        return time.monotonic() < self.ends

    def check(self, name: str, compute: Callable[[], float], limit: float) -> None:
        """A check is right when what it computes, a largest difference, is within its limit."""
        if not self.has_time:
            print(f"| {name} | left out: no time | |", flush=True)
            return
        try:
            found = compute()
            is_right, shown = found <= limit, f"{found:.1e}"
        except Exception as error:
            is_right, shown = False, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if not is_right:
            self.failed.append(name)
        print(f"| {name} | {shown} | {limit:.1e} |{'' if is_right else ' **FAILED**'}", flush=True)


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest; infinite where a value is not finite."""
    found = (one.float().cpu() - other.float().cpu()).abs().max()
    return float(found) if found.isfinite() else float("inf")


def pipeline(is_xl: bool, rank: int | None) -> Any:
    """A tiny pipeline with an adapter that changes the image."""
    pipe = tiny.facesnap(tiny.xl_pipeline() if is_xl else tiny.sd_pipeline())
    torch.manual_seed(2)
    pipe.init_facesnap_adapter(
        tiny.adapter_config(image_encoder_id=None),
        mixer={"hidden_size": 32, "attention_head_dim": 8},
        ffrnet_rank=rank,
    )
    for part in (pipe.ffrnet, pipe.identity_attention):
        for parameter in part.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return pipe


def image(pipe: Any) -> torch.Tensor:
    return tiny.generate(pipe, identity=tiny.identity(image_features=False))


def check_everything(report: Report, device: str, kinds: list[tuple[bool, int | None]]) -> None:
    """Checks what the package computes with pipelines of some kinds: whether SDXL's, and the rank of FFRNet."""
    print("\n| check | largest difference | allowed |\n|---|---:|---:|")

    def drawing() -> float:
        points = load_landmark_predictor().mean[:72, :2] * torch.tensor([80.0, -80.0]) + 128
        return difference(draw_landmarks(points[None].to(device), 256, 256), draw_landmarks(points[None], 256, 256))

    report.check("drawing, to the CPU's", drawing, 1 / 255)
    for is_xl, rank in kinds:
        name = f"{'SDXL' if is_xl else 'SD'}, {'full' if rank is None else 'small'} FFRNet"
        expected = image(pipeline(is_xl, rank))

        def made(change: Callable[[Any], Any], is_xl: bool = is_xl, rank: int | None = rank) -> torch.Tensor:
            pipe = pipeline(is_xl, rank)
            changed = change(pipe)
            return image(pipe if changed is None else changed)

        def against(change: Callable[[Any], Any], expected: torch.Tensor = expected) -> Callable[[], float]:
            return lambda: difference(made(change), expected)

        report.check(f"{name}: on the device, to the CPU's", against(lambda pipe: pipe.to(device)), 1e-2)
        for dtype, limit in ((torch.float16, 0.02), (torch.bfloat16, 0.1)):
            report.check(f"{name}: {dtype}", against(lambda pipe, dtype=dtype: pipe.to(device, dtype)), limit)
        report.check(f"{name}: compiled", against(lambda pipe: compiled(pipe.to(device))), 1e-2)
        report.check(f"{name}: float8", against(lambda pipe: in_float8(pipe.to(device))), 0.2)
        report.check(
            f"{name}: offload by model", against(lambda pipe: pipe.enable_model_cpu_offload(device=device)), 1e-2
        )
        if device != "cpu":  # accelerate cannot keep apart where both are the CPU
            report.check(
                f"{name}: offload by sequence",
                against(lambda pipe: pipe.enable_sequential_cpu_offload(device=device)),
                1e-2,
            )
        for level in ("leaf_level", "block_level"):
            report.check(
                f"{name}: offload by group, {level}",
                against(lambda pipe, level=level: by_group(pipe, device, level)),
                1e-2,
            )


def compiled(pipe: Any) -> None:
    torch._dynamo.reset()
    backend = "inductor" if pipe.unet.device.type == "cuda" else "aot_eager"
    pipe.unet = torch.compile(pipe.unet, fullgraph=True, backend=backend)


def in_float8(pipe: Any) -> None:
    for net in (pipe.unet, pipe.ffrnet):
        net.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)


def by_group(pipe: Any, device: str, level: str) -> None:
    blocks = {"num_blocks_per_group": 1} if level == "block_level" else {}
    pipe.enable_group_offload(torch.device(device), offload_type=level, **blocks)


def timed(function: Callable[[], Any], device: str, rounds: int) -> tuple[float, float | None]:
    """The median of the seconds of some calls after a first one, and the peak of the device's memory in GB."""
    function()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(rounds):
        _wait(device)
        start = time.perf_counter()
        function()
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else None


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _gigabytes(peak: float | None) -> str:
    return "–" if peak is None else f"{peak:.1f}"


def measure_calls(
    report: Report, device: str, sides: list[int], width: float, steps: int, rounds: int, rows: tuple[str, ...] = ROWS
) -> None:
    """Seconds, ratio to the plain call, and peak memory of each row."""
    dtype = torch.float16 if device == "cuda" else torch.float32
    for family in ("sd1", "sdxl"):
        for side in sides:
            if not report.has_time:
                print(f"\n{family} at {side} px: left out, no time")
                continue
            print(f"\n{family}, {side} px, {steps} steps with guidance, {dtype}, with decoding")
            print("\n| | seconds | ratio | peak, GB |\n|---|---:|---:|---:|")
            plain = None
            for row in rows:  # each with the memory to itself
                if not report.has_time:
                    print(f"| {row} | left out: no time | | |", flush=True)
                    continue
                base = base_pipeline(family, width, device, dtype, text_layers=12 if width == 1 else 1)
                function = calls(base, side, steps, rank_of(width), (row,), output_type="pt")[row]
                seconds, peak = timed(function, device, rounds)
                plain = plain or seconds
                print(f"| {row} | {seconds:.2f} | {seconds / plain:.2f} | {_gigabytes(peak)} |", flush=True)
                del base, function
                free()


def training_step(config: Path, device: str, width: float, side: int | None, batch: int | None) -> Callable[[], Any]:
    """Denoising loss, backward pass and optimizer of a config, on random latents."""
    settings = load_config(config)
    family = "sdxl" if config.name.startswith("sdxl") else "sd1"
    size, batch = (side or settings.data.resolution) // 8, batch or settings.batch_size
    with torch.device(device):
        unet = UNet2DConditionModel(**unet_config(family, width)).to(torch.bfloat16).requires_grad_(False)
        channels = unet.config.cross_attention_dim
        rank = settings.adapter.ffrnet_rank
        ffrnet = FFRNet.from_unet(unet, rank=None if rank is None else round(width * rank)).float().train()
        mixer = FacialAttributeMixer(channels, face_embed_dim=512, image_embed_dim=None, num_tokens=16).train()
        attention = IdentityAttention.from_unet(unet).float().train()
        if settings.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
            ffrnet.enable_gradient_checkpointing()
        parameters = [p for part in (ffrnet, mixer, attention) for p in part.requires_grad_(True).parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=device == "cuda")
        added = None
        if family == "sdxl":
            added = {"text_embeds": torch.randn(batch, 1280), "time_ids": torch.randn(batch, 6)}
        noise, picture = torch.randn(batch, 4, size, size), torch.rand(batch, 3, 8 * size, 8 * size)
        timestep, text, face = torch.tensor(500), torch.randn(batch, 77, channels), torch.randn(batch, 1, 512)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            tokens = mixer(face[:, 0], None)
            down, mid = ffrnet(noise, timestep, tokens, picture, added_cond_kwargs=added, return_dict=False)
            predicted = unet(
                noise,
                timestep,
                torch.cat([text, tokens.to(text.dtype)], 1),
                added_cond_kwargs=added,
                cross_attention_kwargs=attention.context(unet, tokens.shape[1]).as_kwargs(),
                down_block_additional_residuals=down,
                mid_block_additional_residual=mid,
            ).sample
        (predicted.float() - noise).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_training(report: Report, device: str, width: float, side: int | None, batch: int | None) -> None:
    """Seconds and peak memory of a training step of the shipped configs."""
    print("\nTraining steps at the configs' batch sizes: denoising loss alone, latents given, AdamW in float32")
    print("\n| config | seconds | peak, GB |\n|---|---:|---:|")
    for config in sorted(CONFIGS.glob("*.yaml")):
        if not report.has_time:
            print(f"| {config.stem} | left out: no time | |", flush=True)
            continue
        try:
            seconds, peak = timed(training_step(config, device, width, side, batch), device, 3 if width == 1 else 1)
            print(f"| {config.stem} | {seconds:.2f} | {_gigabytes(peak)} |", flush=True)
        except torch.OutOfMemoryError:
            print(f"| {config.stem} | out of memory | |", flush=True)
        free()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="nets a tenth as wide, small images, few steps")
    parser.add_argument("--minutes", type=float, default=7.5, help="nothing is begun after that")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    report = Report(60 * args.minutes)
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    print(f"# {name}, torch {torch.__version__}{', tiny' if args.tiny else ''}")
    kinds = [(False, None), (True, 4)] if args.tiny else [(False, None), (False, 4), (True, None), (True, 4)]
    check_everything(report, args.device, kinds)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    if args.tiny:
        measure_calls(report, args.device, [64], 0.1, 2, 1, ("plain", "both", "FaceSnap exact", ROWS[-1]))
        measure_training(report, args.device, 0.1, 64, 1)
    else:
        measure_calls(report, args.device, [512, 1024], 1.0, STEPS, 2)
        measure_training(report, args.device, 1.0, None, None)
    if report.failed:
        sys.exit(f"failed: {', '.join(report.failed)}")


if __name__ == "__main__":
    main()
