"""Writes the base model, averaged weights in half precision, as a folder that any Stable Diffusion pipeline loads.

python export.py
import facesnap_diffusers.nano.autoencoder  # so that diffusers knows the autoencoder's class
StableDiffusionPipeline.from_pretrained("<work dir>/export")
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from train_base import BaseModel, create_pipeline, load_autoencoder
from workspace import add_work_dir

from facesnap_diffusers.nano.autoencoder import AutoencoderPatch


def load_trained(work_dir: Path) -> tuple[BaseModel, AutoencoderPatch, int]:
    """The averaged base model of the last checkpoint, its autoencoder, and the number of steps behind it."""
    state = torch.load(work_dir / "base/training.pt", weights_only=False)
    model = BaseModel().eval()
    model.load_state_dict(state["module"] | state["average"])
    return model, load_autoencoder(work_dir), state["step"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--output", type=Path, help="folder to write (default: export in the work directory)")
    args = parser.parse_args()
    output = args.output or args.work_dir / "export"
    model, vae, step = load_trained(args.work_dir)
    create_pipeline(model, vae).to(dtype=torch.float16).save_pretrained(output, safe_serialization=True)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{output}: {size / 1e6:.2f} MB after {step} steps")


if __name__ == "__main__":
    main()
