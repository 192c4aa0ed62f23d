"""What training costs: memory and arithmetic, counted on the full-size models without weights or a GPU.

    python examples/training/estimate.py

Arithmetic is counted by `torch.utils.flop_counter`, activations as what autograd saves in a forward pass in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode

from facesnap_diffusers.base_models import empty_unet
from facesnap_diffusers.models.attention import IdentityAttention
from facesnap_diffusers.models.ffrnet import FFRNet
from facesnap_diffusers.models.mixer import FacialAttributeMixer


TERA, GIGA = 1e12, 1e9
SNR_SHARE = 0.35  # of timesteps of Stable Diffusion's schedule have a signal-to-noise ratio over 1
THROUGHPUT = 0.35 * 312 * TERA  # of an A100 in bfloat16, at 35 % of its peak, which such networks reach
FAMILIES = {
    "sd1": {
        "latent": 64,
        "batch": 8,
        "optimizer_bytes": 8,
        "frozen": 0.12e9 + 0.3e9,
        "vae_bytes": 2,
        "samples": 12.8e6,
    },
    "sdxl": {
        "latent": 128,
        "batch": 4,
        "optimizer_bytes": 2,
        "frozen": 0.82e9 + 0.3e9,
        "vae_bytes": 4,
        "samples": 6.4e6,
    },
}


def create_vae() -> AutoencoderKL:
    with torch.device("meta"):
        return AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
            latent_channels=4,
        ).requires_grad_(False)


def flops(function: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function()
    return counter.get_total_flops()


def saved_bytes(function: Callable[[], Any], bytes_per_number: int = 2) -> int:
    """What a forward pass keeps for the backward pass, each tensor once, parameters not."""
    sizes: dict[int, int] = {}
    kept = []  # so that no identity is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if not isinstance(tensor, torch.nn.Parameter):
            sizes[id(tensor.untyped_storage())] = tensor.numel() * bytes_per_number
            kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function()
    return sum(sizes.values())


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def main() -> None:
    for family, plan in FAMILIES.items():
        unet, vae, latent = empty_unet(family).requires_grad_(False), create_vae(), plan["latent"]
        width = unet.config.cross_attention_dim
        with torch.device("meta"):
            parts = [FacialAttributeMixer(width), IdentityAttention.from_unet(unet), FFRNet.from_unet(unet)]
            sample, timestep = torch.zeros(1, 4, latent, latent), torch.zeros(1, dtype=torch.long)
            context = torch.zeros(1, 93, width, requires_grad=True)
            image, pixels = torch.zeros(1, 3, 8 * latent, 8 * latent), torch.zeros(1, 3, 8 * latent, 8 * latent)
            latents = torch.zeros(1, 4, latent, latent, requires_grad=True)
            added = {}
            if family == "sdxl":
                added = {"added_cond_kwargs": {"text_embeds": torch.zeros(1, 1280), "time_ids": torch.zeros(1, 6)}}
        ffrnet = parts[2].train()
        unet.train()
        vae.train()

        def forward() -> None:
            down, mid = ffrnet(sample, timestep, context[:, 77:], image, return_dict=False, **added)
            residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
            unet(sample, timestep, context, **residuals, **added)

        tokens = context.detach()
        unet_flops = flops(lambda: unet(sample, timestep, tokens, **added))
        ffrnet_flops = flops(lambda: ffrnet(sample, timestep, tokens[:, 77:], image, return_dict=False, **added))
        encode_flops = flops(lambda: vae.encode(pixels))
        decode_flops = flops(lambda: vae.decode(sample))
        plain = saved_bytes(forward), saved_bytes(lambda: vae.decode(latents), plan["vae_bytes"])
        for module in (unet, ffrnet, vae):
            module.enable_gradient_checkpointing()
        checkpointed = saved_bytes(forward), saved_bytes(lambda: vae.decode(latents), plan["vae_bytes"])

        # a frozen network's backward pass costs as much as its forward pass, a trained one's twice as much;
        # recomputing costs a forward pass more; float32 (TF32) costs twice as much as bfloat16
        vae_factor = plan["vae_bytes"] / 2
        vae_flops = vae_factor * (encode_flops + SNR_SHARE * 3 * decode_flops)
        total = 3 * unet_flops + 4 * ffrnet_flops + vae_flops

        trained = sum(map(count, parts))
        fixed = 2 * (count(unet) + plan["frozen"]) + plan["vae_bytes"] * count(vae)
        state = trained * (4 + 4 + 4 + plan["optimizer_bytes"] + 2)  # weights, gradients, EMA, optimizer, bf16 copies
        activations = plan["batch"] * (checkpointed[0] + SNR_SHARE * checkpointed[1])
        memory = fixed + state + activations

        print(f"{family} at {8 * latent} px")
        print(f"  trained parameters          {trained / 1e6:8.0f} M")
        print(
            f"  TFLOP: UNet {unet_flops / TERA:.2f}, FFRNet {ffrnet_flops / TERA:.2f}, VAE {encode_flops / TERA:.2f} + {decode_flops / TERA:.2f}"
        )
        print(
            f"  saved a sample, networks    {plain[0] / GIGA:8.2f} GB, {checkpointed[0] / GIGA:.2f} GB with checkpointing"
        )
        print(
            f"  saved a sample, L_id        {plain[1] / GIGA:8.2f} GB, {checkpointed[1] / GIGA:.2f} GB with checkpointing"
        )
        print(
            f"  frozen {fixed / GIGA:.1f} GB + trained {state / GIGA:.1f} GB + batch of {plan['batch']} {activations / GIGA:.1f} GB = {memory / GIGA:.0f} GB"
        )
        print(f"  TFLOP a sample              {total / TERA:8.1f}")
        print(f"  samples a second            {THROUGHPUT / total:8.1f}")
        print(
            f"  GPU-days for {plan['samples'] / 1e6:.1f} M samples {plan['samples'] * total / THROUGHPUT / 86400:6.0f}"
        )


if __name__ == "__main__":
    main()
