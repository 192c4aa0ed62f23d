"""
What a training step without identity loss costs beside forward and backward pass of the base's UNet, in the shape of SD 1.5: by
arithmetic, and whole steps of the trainer side by side with it.

    python benchmarks/training_step.py                                 # counts multiplications on shapes: seconds
    python benchmarks/training_step.py --measure --side 256 --width 0.25   # and times steps of nets a quarter as wide: minutes

The unit is what a step of fine-tuning the base costs: forward and backward pass of the UNet with the gradients of its weights.
Beside it stands the gradient of its input alone. Neither has an encoder in it; steps have all of theirs: those of text and image,
and the VAE's unless `data.crops` has computed its latents before. Measured steps are those of the `Trainer`, with collating,
clipping, AdamW and averaging, all rows in turn in each round, in CPU seconds of the process, so that other processes count
little. The first of the rounds is left out.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from random_models import NUM_TOKENS, base_pipeline, unet_config
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from facesnap_diffusers.models.attention import IdentityAttention
from facesnap_diffusers.models.ffrnet import FFRNet
from facesnap_diffusers.models.mixer import FacialAttributeMixer
from facesnap_diffusers.settings import parse_settings
from facesnap_diffusers.training.trainer import Trainer, _Step
from facesnap_diffusers.training.training_config import TrainingConfig
from facesnap_diffusers.training.validation import to_device


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import tiny
import tiny_training


UNIT, TO_INPUT = "UNet, gradients of its weights", "UNet, gradient of its input"
RANK = 64


def image_encoder(width: float = 1.0, side: int = 512) -> CLIPVisionModelWithProjection:
    """In the shape of CLIP ViT-L/14; its pictures are as much smaller as those of `side` are smaller than 512 pixels."""
    hidden = round(1024 * width)
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=hidden,
            intermediate_size=4 * hidden,
            num_hidden_layers=24,
            num_attention_heads=hidden // 64,
            image_size=14 * max(1, round(side / 32)),
            patch_size=14,
            projection_dim=768,
        )
    )


def count(side: int = 512, width: float = 1.0) -> dict[str, float]:
    """Floating-point operations of one sample, by what they are of, and of whole steps."""
    size, hidden, rank = side // 8, round(1024 * width), max(1, round(RANK * width))

    def flops(forward: Callable[[], Any], backward: bool = True) -> float:
        with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
            outputs = forward()
            if backward:
                sum(output.sum() for output in outputs).backward()
        return float(counter.get_total_flops())

    with torch.device("meta"):
        unet = UNet2DConditionModel(**unet_config("sd1", width))
        identity_attention = IdentityAttention.from_unet(unet)
        mixer = FacialAttributeMixer(
            768, num_tokens=NUM_TOKENS, image_embed_dim=hidden, hidden_size=round(768 * width)
        )
        encoder = image_encoder(width, side)
        texts = CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=text_layers(width), num_attention_heads=12
            )
        )
        vae = AutoencoderKL(
            block_out_channels=tuple(max(32, round(width * channels)) for channels in (128, 256, 512, 512)),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
            latent_channels=4,
        )
        noise, timestep, text = torch.zeros(1, 4, size, size), torch.zeros(1).long(), torch.zeros(1, 77, 768)
        tokens, picture = torch.zeros(1, NUM_TOKENS, 768, requires_grad=True), torch.zeros(1, 3, side, side)
        found = {UNIT: flops(lambda: unet(noise, timestep, text, return_dict=False))}
        unet.requires_grad_(False)
        context = identity_attention.context(unet, NUM_TOKENS).as_kwargs()

        def with_adapter(ffrnet: FFRNet) -> Any:
            down, mid = ffrnet(noise, timestep, tokens, picture, return_dict=False)
            return unet(
                noise,
                timestep,
                torch.cat([text, tokens], dim=1),
                cross_attention_kwargs=context,
                down_block_additional_residuals=list(down),
                mid_block_additional_residual=mid,
                return_dict=False,
            )

        found[TO_INPUT] = flops(lambda: unet(noise.clone().requires_grad_(), timestep, text, return_dict=False))
        full = flops(lambda: with_adapter(FFRNet.from_unet(unet)))
        small = flops(lambda: with_adapter(FFRNet.from_unet(unet, rank)))
        crop = torch.zeros(1, 3, encoder.config.image_size, encoder.config.image_size)
        states = encoder.vision_model(crop).last_hidden_state.detach()
        encoders = {
            "image encoder": flops(lambda: encoder(crop), backward=False),
            "text encoder": flops(lambda: texts(torch.zeros(1, 77).long()), backward=False),
            "mixer": flops(lambda: [mixer(torch.zeros(1, 512), states)]),
        }
        latents = flops(lambda: vae.encode(picture), backward=False)
    others = sum(encoders.values())
    return {
        **found,
        "UNet with the adapter": full,
        "UNet with the adapter, small FFRNet": small,
        **encoders,
        "VAE's encoder": latents,
        "step": full + others + latents,
        "step, data.crops": full + others,
        "step, data.crops, small FFRNet": small + others,
    }


def text_layers(width: float) -> int:
    """Their width is that of the UNet's context, which stays, so that their number says how large a text encoder is."""
    return max(1, round(12 * width**2))


def write_base(folder: Path, width: float, side: int) -> None:
    """Random weights in the shape of SD 1.5, whose encoders are as much smaller as its UNet."""
    pipe = base_pipeline("sd1", width, text_layers=text_layers(width))
    pipe.save_pretrained(folder)
    encoder = image_encoder(width, side)
    encoder.save_pretrained(folder / "face_encoder")
    size = encoder.config.image_size
    CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}).save_pretrained(
        folder / "face_encoder"
    )


def config(
    root: Path, output: Path, side: int, width: float, batch: int, steps: int, **changes: Any
) -> TrainingConfig:
    adapter = {
        "face_encoder_id": tiny.FACE_ENCODER,
        "face_embed_dim": tiny.FACE_EMBED_DIM,
        "image_encoder_id": str(root / "base/face_encoder"),
        "bundle_image_encoder": True,
        "mixer": {"hidden_size": round(768 * width)},
    }
    values = {
        "output_dir": str(output),
        "base": {"model": str(root / "base")},
        "data": {"shards": [str(root / "faces")], "resolution": side, "workers": 0, **changes.get("data", {})},
        "adapter": {**adapter, **changes.get("adapter", {})},
        "optimizer": {"name": "adamw_fused"},
        "steps": steps,
        "batch_size": batch,
    }
    return parse_settings(TrainingConfig, values, "config")


def trainer_step(config: TrainingConfig) -> Callable[[], None]:
    """A function that does one step of a run, as [`Trainer.train`] does."""
    tiny_training.reset_accelerate()
    trainer = Trainer(config)
    if trainer.samples.latents is not None:
        trainer._compute_latents(trainer.samples.latents)
    batches = iter(trainer._batches(0))

    def step() -> None:
        state = _Step()
        trainer._forward_backward(to_device(next(batches), trainer.accelerator.device), state)
        assert state.finite
        trainer.lr_scheduler.step()
        trainer.progress.step += 1
        assert trainer.ema is not None
        trainer.ema.step(trainer.parameters)

    return step


def base_step(unet: Any, side: int, batch: int, weights: bool) -> Callable[[], None]:
    unet.train().requires_grad_(weights)
    noise, text = torch.randn(batch, 4, side // 8, side // 8), torch.randn(batch, 77, 768)

    def step() -> None:
        sample = noise.clone().requires_grad_(not weights)
        predicted = unet(sample, torch.full((batch,), 500), text, return_dict=False)[0]
        (predicted - noise).square().mean().backward()
        unet.zero_grad()

    return step


def measure(side: int, width: float, batch: int, rounds: int) -> dict[str, list[float]]:
    """CPU seconds of a step by row, one for each round but the first."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_base(root / "base", width, side)
        tiny_training.write_faces(root / "faces", clip_crop_size=224)
        rank = {"ffrnet_rank": max(1, round(RANK * width))}
        rows = {
            UNIT: base_step(base_pipeline("sd1", width).unet, side, batch, True),
            TO_INPUT: base_step(base_pipeline("sd1", width).unet, side, batch, False),
        }
        for name, changes in {
            "step": {},
            "step, data.crops": {"data": {"crops": 1}},
            "step, data.crops, small FFRNet": {"data": {"crops": 1}, "adapter": rank},
        }.items():
            rows[name] = trainer_step(config(root, root / name, side, width, batch, rounds + 1, **changes))
        seconds: dict[str, list[float]] = {name: [] for name in rows}
        for number in range(rounds + 1):
            for name, step in rows.items():
                start = time.process_time()
                step()
                if number > 0:
                    seconds[name].append(time.process_time() - start)
    return seconds


def print_counts(found: dict[str, float]) -> None:
    print("| of one sample | TFLOP | of the unit |\n|---|---:|---:|")
    for name, value in found.items():
        print(f"| {name} | {value / 1e12:.3f} | {value / found[UNIT]:.2f} |")


def print_seconds(seconds: dict[str, list[float]]) -> None:
    print("| CPU seconds | median | of the unit |\n|---|---:|---:|")
    for name, values in seconds.items():
        ratios = [value / unit for value, unit in zip(values, seconds[UNIT], strict=True)]
        print(f"| {name} | {statistics.median(values):.2f} | {statistics.median(ratios):.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="times steps too")
    parser.add_argument("--side", type=int, default=256, help="of the measured pictures, in pixels")
    parser.add_argument("--width", type=float, default=0.25, help="of the measured nets, as a factor")
    parser.add_argument("--batch", type=int, default=4, help="of the measured steps")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    print_counts(count())
    if arguments.measure:
        torch.set_num_threads(1)
        print()
        print_counts(count(arguments.side, arguments.width))
        print(flush=True)
        print_seconds(measure(arguments.side, arguments.width, arguments.batch, arguments.rounds))


if __name__ == "__main__":
    main()
