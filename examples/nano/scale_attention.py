"""Makes a larger scale of the identity attention an adapter's own: at scale 1 it then draws what it drew at that scale.

    python scale_attention.py ../../src/facesnap_diffusers/assets/nano/adapter 1.3

The identity attention is added to the text's, scaled: `Attn(q, text) + scale · Attn(q, identity tokens)`. What it adds is linear in
the values, so that the scale can go into their projection.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from facesnap_diffusers.models.attention import IdentityAttention


@torch.no_grad()
def scale_values(attention: IdentityAttention, scale: float) -> None:
    """Multiplies what every layer's identity attention adds by `scale`."""
    for projection in attention.projections.values():
        projection.to_v.weight *= scale
        if projection.to_v.bias is not None:
            projection.to_v.bias *= scale


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path, help="folder of the adapter, which is changed")
    parser.add_argument("scale", type=float)
    args = parser.parse_args()
    folder = args.adapter / "identity_attention"
    attention = IdentityAttention.from_pretrained(folder)
    dtype = attention.dtype
    scale_values(attention.float(), args.scale)
    attention.to(dtype).save_pretrained(folder)


if __name__ == "__main__":
    main()
