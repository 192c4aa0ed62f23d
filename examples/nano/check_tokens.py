"""How much of the face embedding is left in the identity tokens, where attention in UNet and FFRNet finds it.

    python check_tokens.py ~/.cache/facesnap-nano/adapters/likeness/adapter

A linear map from tokens to embeddings is fitted to the people of the training split. Prints which share of the embeddings'
variance it leaves unexplained for those of the validation split, and for how many of their views the embedding that is
nearest to its result is the view's own.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from start_adapter import People
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
from workspace import add_work_dir

from facesnap_diffusers.models.mixer import FacialAttributeMixer


RIDGE = 1.0


@torch.no_grad()
def tokens_and_embeddings(mixer: FacialAttributeMixer, people: People) -> tuple[torch.Tensor, torch.Tensor]:
    """(views, tokens x width) and (views, 128) of all views."""
    embeddings, states = people.embeddings.flatten(0, 1), people.states.flatten(0, 1)
    parts = zip(embeddings.split(256), states.split(256))
    return torch.cat([mixer(*(part.float() for part in pair)).flatten(1) for pair in parts]), embeddings


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("adapters", type=Path, nargs="+")
    args = parser.parse_args()
    encoder = CLIPVisionModelWithProjection.from_pretrained(args.adapters[0] / "image_encoder").eval()
    processor = CLIPImageProcessor.from_pretrained(args.adapters[0] / "image_encoder")
    train, held_out = (People(args.work_dir, split, encoder, processor) for split in ("train", "validation"))
    for adapter in args.adapters:
        mixer = FacialAttributeMixer.from_pretrained(adapter / "mixer").eval()
        tokens, embeddings = tokens_and_embeddings(mixer, train)
        mean_tokens, mean_embedding = tokens.mean(0), embeddings.mean(0)
        spread = tokens - mean_tokens
        fit = torch.linalg.solve(
            spread.T @ spread + RIDGE * torch.eye(spread.shape[1]), spread.T @ (embeddings - mean_embedding)
        )
        tokens, embeddings = tokens_and_embeddings(mixer, held_out)
        predicted = (tokens - mean_tokens) @ fit + mean_embedding
        unexplained = (predicted - embeddings).square().sum() / (embeddings - mean_embedding).square().sum()
        own = torch.cdist(predicted, embeddings).argmin(1) == torch.arange(len(predicted))
        print(f"{adapter}: {unexplained:.2f} unexplained, {own.float().mean():.1%} of {len(own)} found", flush=True)


if __name__ == "__main__":
    main()
