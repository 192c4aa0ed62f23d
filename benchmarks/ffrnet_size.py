"""What FFRNet costs by rank, counted on shapes alone: memory beside the UNet's, size of an adapter, arithmetic of a step.

    python benchmarks/ffrnet_size.py --families sd1 sdxl --ranks 32 64 128

Multiplications are those of a step at 512 px (SD 1.5, SD 2) or 1024 px (SDXL), of batch size 1.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from facesnap_diffusers import FaceSnapConfig, FFRNet, load_landmark_predictor
from facesnap_diffusers.base_models import UNET_CONFIGS, empty_unet
from facesnap_diffusers.models.attention import IdentityAttention
from facesnap_diffusers.models.mixer import FacialAttributeMixer


def flops(net: nn.Module, *inputs: Any, **keywords: Any) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(*inputs, **keywords)
    return counter.get_total_flops()


def table(family: str, ranks: list[int]) -> list[str]:
    num_tokens = FaceSnapConfig().num_tokens
    unet, predictor = empty_unet(family), load_landmark_predictor()
    with torch.device("meta"):
        width, side = unet.config.cross_attention_dim, 128 if family == "sdxl" else 64
        rest = [FacialAttributeMixer(width, num_tokens=num_tokens), IdentityAttention.from_unet(unet), predictor]
        rest_size = sum(sum(tensor.numel() for tensor in part.state_dict().values()) for part in rest)
        added = {"text_embeds": torch.empty(1, 1280), "time_ids": torch.empty(1, 6)} if family == "sdxl" else None
        sample, timestep = torch.empty(1, 4, side, side), torch.tensor(500)
        tokens, image = torch.empty(1, num_tokens, width), torch.empty(1, 3, side * 8, side * 8)
        step = flops(unet, sample, timestep, torch.empty(1, 77, width), added_cond_kwargs=added)
        rows = []
        for rank in [None, *ranks]:
            ffrnet = FFRNet.from_unet(unet, rank=rank)
            count = ffrnet.num_parameters()
            own = flops(ffrnet, sample, timestep, tokens, image, added_cond_kwargs=added)
            cells = [
                family,
                "full" if rank is None else str(rank),
                f"{count / 1e6:.1f} M",
                f"{count / unet.num_parameters():.1%}",
                f"{2 * (count + rest_size) / 1e6:.0f} MB",
                f"{own / step:.2f}",
            ]
            rows.append(f"| {' | '.join(cells)} |")
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=list(UNET_CONFIGS), default=["sd1", "sdxl"])
    parser.add_argument("--ranks", nargs="+", type=int, default=[32, 64, 128])
    args = parser.parse_args()
    print("| base | rank | FFRNet's own | to the UNet's weights | adapter, half precision | step, UNet's = 1 |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for family in args.families:
        print("\n".join(table(family, args.ranks)))


if __name__ == "__main__":
    main()
