"""What an adapter's image encoder and identity tokens say of a person: linear probes of hair, beard, glasses, eyes, skin.

    python check_attributes.py ../../src/facesnap_diffusers/assets/nano/adapter
    python check_attributes.py ~/.cache/facesnap-nano/taught/image_encoder        # an encoder alone

A probe is multinomial logistic regression on the class token and the mean of all states that the mixer reads, or on the
identity tokens, fitted to views of the training people; of three strengths of weight decay the one that serves validation
people best. Prints the share of right answers for the test people, and what always answering the commonest gives.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from attributes import CLASSES, class_numbers, person_mask
from dataset import TO_PACKAGE, Shard, shard_paths
from embed_faces import chip
from people.face_model import FaceModel
from photo_like import photo_like
from render import scene_of
from teach_image_encoder import CLOSED, EYES, OUTSIDE, UNKNOWN
from train_autoencoder import to_tensor
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
from workspace import add_work_dir

from facesnap_diffusers.faces.alignment import align_for_clip
from facesnap_diffusers.models.image_encoder import image_hidden_states
from facesnap_diffusers.models.mixer import FacialAttributeMixer
from facesnap_diffusers.training.dlib_network import load_dlib_network


VIEWS, PEOPLE = 3, 700
DECAYS = (1e-4, 1e-3, 1e-2)


class Features:
    """What encoder and mixer make of the first views of a split's people, with labels."""

    def __init__(self, work_dir: Path, split: str, encoder, processor, mixer=None, network=None, photos: bool = False):
        states, tokens, labels = [], [], []
        rng = np.random.default_rng(0)
        for path in shard_paths(work_dir, split)[: PEOPLE // 20]:
            shard = Shard.load(path)
            for view in range(VIEWS):
                images, points = shard.images[:, view], shard.landmarks[:, view] + TO_PACKAGE
                heads = [align_for_clip(i, p, encoder.config.image_size) for i, p in zip(images, points)]
                if photos:
                    heads = self._photo_like(heads, images, points, shard.people, view, encoder.config.image_size, rng)
                pixels = processor(heads, return_tensors="pt").pixel_values
                with torch.no_grad():
                    found = image_hidden_states(encoder, pixels)
                    states.append(torch.cat([found[:, 0], found[:, 1:].mean(1)], 1))
                    if mixer is not None:
                        chips = [chip(i, p) for i, p in zip(images, shard.landmarks[:, view])]
                        tokens.append(mixer(network(to_tensor(np.stack(chips))), found).flatten(1))
                for attributes in (person[view] for person in shard.attributes):
                    labels.append(class_numbers(attributes))
                    if attributes["expression"] == CLOSED:
                        labels[-1][EYES] = UNKNOWN
        self.by_name = {"states": torch.cat(states)} | ({"tokens": torch.cat(tokens)} if tokens else {})
        self.labels = torch.from_numpy(np.stack(labels))

    @staticmethod
    def _photo_like(heads, images, points, people, view: int, size: int, rng: np.random.Generator) -> list[np.ndarray]:
        index, made = FaceModel().expression_index, []
        for head, image, places, person in zip(heads, images, points, people):
            behind = np.uint8(255) * ~person_mask(image, scene_of(int(person), view, index))
            behind = align_for_clip(np.repeat(behind[..., None], 3, 2), places, size)[..., 0]
            made.append(photo_like(head, np.where(behind > OUTSIDE, 255, 0).astype(np.uint8), rng))
        return made


def probe(source: torch.Tensor, labels: torch.Tensor, count: int, decay: float):
    """Weights (features + 1, count) of logistic regression."""
    weights = torch.zeros(source.shape[1] + 1, count, requires_grad=True)
    inputs = F.pad(source, (0, 1), value=1.0)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(inputs @ weights, labels, ignore_index=UNKNOWN) + decay * weights[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return weights.detach()


def right(weights: torch.Tensor, source: torch.Tensor, labels: torch.Tensor) -> float:
    known = labels != UNKNOWN
    found = (F.pad(source, (0, 1), value=1.0) @ weights).argmax(1)
    return (found == labels)[known].float().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("folders", type=Path, nargs="+", help="adapters or image encoders")
    parser.add_argument("--photo-like", action="store_true", help="test on heads made photo-like")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    network = load_dlib_network()
    for folder in args.folders:
        mixer = None
        if (folder / "mixer").exists():
            mixer = FacialAttributeMixer.from_pretrained(folder / "mixer", dtype=torch.float32).eval()
        place = folder / "image_encoder" if mixer is not None else folder
        encoder = CLIPVisionModelWithProjection.from_pretrained(place, dtype=torch.float32).eval()
        processor = CLIPImageProcessor.from_pretrained(place)
        train, held_out, test = (
            Features(args.work_dir, split, encoder, processor, mixer, network, args.photo_like and split == "test")
            for split in ("train", "validation", "test")
        )
        print(folder)
        for name in train.by_name:
            mean, std = train.by_name[name].mean(0), train.by_name[name].std(0) + 1e-6
            source, chosen, tested = ((part.by_name[name] - mean) / std for part in (train, held_out, test))
            scores = []
            for k, (attribute, values) in enumerate(CLASSES.items()):
                fits = [probe(source, train.labels[:, k], len(values), decay) for decay in DECAYS]
                best = max(fits, key=lambda weights: right(weights, chosen, held_out.labels[:, k]))
                scores.append(f"{attribute} {right(best, tested, test.labels[:, k]):.2f}")
            print(f"  {name}: {', '.join(scores)}", flush=True)
        known = [test.labels[test.labels[:, k] != UNKNOWN, k] for k in range(len(CLASSES))]
        common = [f"{name} {labels.bincount().max() / len(labels):.2f}" for name, labels in zip(CLASSES, known)]
        print(f"  the commonest answer: {', '.join(common)}", flush=True)


if __name__ == "__main__":
    main()
