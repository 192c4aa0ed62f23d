"""The mean of two adapters, of which one was trained on from the other.

    python average_adapters.py adapters/start-again adapters/again/adapter

Between the weights before and after, much of what was learned last is there already, and less of what was known before is
lost (WiSE-FT, Wortsman et al. 2021, arXiv 2109.01903). Folders are under the work directory; all but the weights of mixer,
identity attention and FFRNet is the second one's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from workspace import add_work_dir

import facesnap_diffusers.nano.autoencoder  # noqa: F401  (diffusers looks its class up there)
from facesnap_diffusers import FaceSnapPipeline


PARTS = ("mixer", "identity_attention", "ffrnet")


@torch.no_grad()
def average(base: Path, before: Path, after: Path, share: float, output: Path) -> None:
    """Writes `(1 - share) * before + share * after`."""
    first, second = (FaceSnapPipeline.from_pretrained(base, dtype=torch.float32) for _ in range(2))
    first.load_facesnap_adapter(before)
    second.load_facesnap_adapter(after)
    for part in PARTS:
        earlier = getattr(first, part).state_dict()
        for name, weight in getattr(second, part).state_dict().items():
            weight.copy_(torch.lerp(earlier[name], weight, share))
    second.save_facesnap_adapter(output)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of the second one (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path("adapters/averaged"))
    args = parser.parse_args()
    before, after, output = (Path(args.work_dir) / path for path in (args.before, args.after, args.output))
    average(Path(args.work_dir) / "export", before, after, args.share, output)


if __name__ == "__main__":
    main()
