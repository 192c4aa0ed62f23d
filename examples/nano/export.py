"""Writes the base model, averaged weights in half precision, as a folder that any Stable Diffusion pipeline loads.

python export.py
StableDiffusionPipeline.from_pretrained("<work dir>/export", safety_checker=None)
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from train_base import BaseModel, create_pipeline
from workspace import add_work_dir

from facesnap_diffusers.nano.autoencoder import AutoencoderPatch


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--output", type=Path, help="folder to write (default: export in the work directory)")
    args = parser.parse_args()
    output = args.output or args.work_dir / "export"
    state = torch.load(args.work_dir / "base/training.pt", weights_only=False)
    model = BaseModel().eval()
    model.load_state_dict(state["module"])
    model.load_state_dict(state["average"], strict=False)
    best = args.work_dir / "autoencoder/final"
    vae = AutoencoderPatch.from_pretrained(best if best.exists() else args.work_dir / "autoencoder/joint")
    create_pipeline(model, vae).to(dtype=torch.float16).save_pretrained(output, safe_serialization=True)
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    print(f"{output}: {size / 1e6:.2f} MB after {state['step']} steps")


if __name__ == "__main__":
    main()
