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
from transformers import CLIPTextModel, CLIPTokenizer
from workspace import add_work_dir

from facesnap_diffusers.nano.autoencoder import AutoencoderPatch


def renumber_tokens(text_encoder: CLIPTextModel, own: CLIPTokenizer, wanted: CLIPTokenizer):
    """Gives each token's embedding the number that the token has in another tokenizer."""
    embedding, numbers = text_encoder.get_input_embeddings(), own.get_vocab()
    with torch.no_grad():
        old = embedding.weight.clone()
        for token, number in wanted.get_vocab().items():
            embedding.weight[number] = old[numbers[token]]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("base", type=Path, help="folder of the base, as export.py writes it")
    parser.add_argument(
        "--text-encoder", type=Path, help="another base, whose text encoder to take (default: its own)"
    )
    args = parser.parse_args()
    autoencoder, checkpoint = args.work_dir / "autoencoder/joint", args.work_dir / "base/training.pt"
    for path in (autoencoder, checkpoint):
        if path.exists():
            raise SystemExit(f"{path} exists; remove it, or name another --work-dir")
    AutoencoderPatch.from_pretrained(args.base / "vae", dtype=torch.float32).save_pretrained(autoencoder)
    model = BaseModel()
    unet = UNet2DConditionModel.from_pretrained(args.base / "unet", dtype=torch.float32)
    model.unet.load_state_dict(unet.state_dict())
    source = args.text_encoder or args.base
    text_encoder = CLIPTextModel.from_pretrained(source / "text_encoder", dtype=torch.float32)
    renumber_tokens(text_encoder, CLIPTokenizer.from_pretrained(source / "tokenizer"), model.tokenizer)
    model.text_encoder.load_state_dict(text_encoder.state_dict())
    average = Average(model, AVERAGE_DECAY)
    save_checkpoint(checkpoint, 0, model, average, create_optimizer(model), np.random.default_rng(0))
    shutil.copytree(args.base, args.work_dir / "export", dirs_exist_ok=True)


if __name__ == "__main__":
    main()
