"""Brings a finished base model back into the work directory, where its training data and checkpoints are gone.

    python restore.py ../../src/facesnap_diffusers/assets/nano/base
    python train_base.py --images 600000     # 600,000 more

The autoencoder then serves every script as if it had been trained here. `train_base.py` starts a run of its own from the
restored weights: the optimizer is new, the learning rate rises and falls again, and pictures are counted from 0.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
import torch
from checkpoints import Average, save_checkpoint
from diffusers import UNet2DConditionModel
from train_base import AVERAGE_DECAY, BaseModel, create_optimizer
from transformers import CLIPTextModel
from workspace import add_work_dir

from facesnap_diffusers.nano.autoencoder import AutoencoderPatch


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("base", type=Path, help="folder of the base, as export.py writes it")
    args = parser.parse_args()
    autoencoder, checkpoint = args.work_dir / "autoencoder/joint", args.work_dir / "base/training.pt"
    for path in (autoencoder, checkpoint):
        if path.exists():
            raise SystemExit(f"{path} exists; remove it, or name another --work-dir")
    AutoencoderPatch.from_pretrained(args.base / "vae", dtype=torch.float32).save_pretrained(autoencoder)
    model = BaseModel()
    unet = UNet2DConditionModel.from_pretrained(args.base / "unet", dtype=torch.float32)
    model.unet.load_state_dict(unet.state_dict())
    text_encoder = CLIPTextModel.from_pretrained(args.base / "text_encoder", dtype=torch.float32)
    model.text_encoder.load_state_dict(text_encoder.state_dict())
    average = Average(model, AVERAGE_DECAY)
    save_checkpoint(checkpoint, 0, model, average, create_optimizer(model), np.random.default_rng(0))
    shutil.copytree(args.base, args.work_dir / "export", dirs_exist_ok=True)


if __name__ == "__main__":
    main()
