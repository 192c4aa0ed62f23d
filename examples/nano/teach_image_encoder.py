"""Teaches the adapter's image encoder what the renderer knows of a person, on photo-like heads. Run again to go on.

    python teach_image_encoder.py --start ../../src/facesnap_diffusers/assets/nano/adapter/image_encoder
    python check_attributes.py ~/.cache/facesnap-nano/taught/image_encoder

Hair length, style and color, bangs, beard, glasses, eyes and skin as classes, colors and forms as numbers (`attributes.py`)
are read by linear heads, dropped afterwards, from the states that the mixer reads: from the class token, and from the mean
of all, so that wherever the mixer's attention looks it finds them. A third head asks, as `train_image_encoder.py` does,
which two pictures show one person. The encoder starts as an earlier one: its patches are enlarged to the larger picture, and
another layer that starts as the identity lies before its last.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from attributes import CLASSES, class_numbers, measures, person_mask
from checkpoints import Average, load_checkpoint, save_checkpoint
from dataset import SEED, TO_PACKAGE, Shard, shard_paths
from descend import descend
from lr_scheduler import learning_rate
from people.face_model import FaceModel
from people.sampling import sample_person
from photo_like import photo_like
from render import scene_of
from torch import nn
from train_image_encoder import contrast
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection
from workspace import add_work_dir

from facesnap_diffusers.faces.alignment import align_for_clip
from facesnap_diffusers.files import atomic_file
from facesnap_diffusers.models.image_encoder import HIDDEN_LAYER


SIZE, PATCH = 96, 12
NEW_LAYERS = 1
PEOPLE = 32  # in a batch, two views each
LEARNING_RATE = 1e-3
CLEAN = 0.25  # share of heads that are shown as rendered
VIEWS_WEIGHT, MEASURES_WEIGHT = 0.5, 2.0
OUTSIDE = 60  # of a mask's level: more is background, or lies outside of the picture
CLOSED = "closed eyes"
EYES = list(CLASSES).index("eyes")
UNKNOWN = -100  # the class that cross entropy leaves out


class LabeledHeads:
    """
    Aligned heads of a split with their labels.

    Attributes:
        heads: (N, V, size, size, 3) uint8; backgrounds: (N, V, size, size) uint8, 255 where no person is.
        classes: (N, V, 8) positions in `CLASSES`, `UNKNOWN` of eyes that are closed; measures: (N, 79).
    """

    def __init__(self, work_dir: Path, split: str, size: int = SIZE, people: int | None = None):
        heads, backgrounds, numbers, who = [], [], [], []
        index = FaceModel().expression_index
        for path in shard_paths(work_dir, split):
            shard = Shard.load(path)
            rows = zip(shard.people, shard.images, shard.landmarks, shard.attributes)
            for person, images, landmarks, attributes in rows:
                shown = person_masks(images, person, index)
                masks = [np.repeat(np.uint8(255) * ~mask[..., None], 3, 2) for mask in shown]
                points = landmarks + TO_PACKAGE
                heads.append(np.stack([align_for_clip(i, p, size) for i, p in zip(images, points)]))
                shown = np.stack([align_for_clip(m, p, size)[..., 0] for m, p in zip(masks, points)])
                backgrounds.append(np.where(shown > OUTSIDE, 255, 0).astype(np.uint8))
                numbers.append(np.stack([class_numbers(of_view) for of_view in attributes]))
                for view, of_view in enumerate(attributes):
                    if of_view["expression"] == CLOSED:
                        numbers[-1][view, EYES] = UNKNOWN
            who += shard.people.tolist()
            if people is not None and len(who) >= people:
                break
        self.heads, self.backgrounds, self.classes = np.stack(heads), np.stack(backgrounds), np.stack(numbers)
        self.measures = np.stack([measures(sample_person(SEED, person)) for person in who])

    def sampling_weights(self) -> np.ndarray:
        """`(N,)`, sums to 1: people with rarer hair styles come more often."""
        styles = self.classes[:, 0, list(CLASSES).index("hair style")]
        weights = np.bincount(styles, minlength=len(CLASSES["hair style"])).clip(1)[styles] ** -0.5
        return weights / weights.sum()

    def variant(self, person: int, view: int, rng: np.random.Generator) -> np.ndarray:
        head, background = self.heads[person, view], self.backgrounds[person, view]
        return head if rng.random() < CLEAN else photo_like(head, background, rng)


def person_masks(images: np.ndarray, person: int, expression_index: dict[str, int]) -> np.ndarray:
    """Where the first views `(V, S, S, 3)` of a person show the person: bool `(V, S, S)`."""
    scenes = [scene_of(int(person), view, expression_index) for view in range(len(images))]
    return np.stack([person_mask(image, scene) for image, scene in zip(images, scenes)])


def to_pixels(heads: np.ndarray, processor: CLIPImageProcessor) -> torch.Tensor:
    """`(N, 3, S, S)` as the encoder takes them, of `(N, S, S, 3)` uint8 at its size."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    return (torch.from_numpy(heads).permute(0, 3, 1, 2).float() / 255 - mean) / std


def create_processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})


@torch.no_grad()
def enlarged(start: CLIPVisionModelWithProjection) -> CLIPVisionModelWithProjection:
    """The same encoder for larger pictures of as many patches, and with more layers."""
    old = start.config
    if old.image_size // old.patch_size != SIZE // PATCH:
        raise SystemExit(f"the encoder to start from has {old.image_size // old.patch_size} patches a side")
    layers = old.num_hidden_layers + NEW_LAYERS
    changes = {"image_size": SIZE, "patch_size": PATCH, "num_hidden_layers": layers}
    encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**{**old.to_dict(), **changes}))
    state, last = start.state_dict(), f"encoder.layers.{old.num_hidden_layers - 1}."
    moved = {}
    for name, value in state.items():
        if "patch_embedding" in name:
            value = F.interpolate(value, (PATCH, PATCH), mode="bicubic") * (old.patch_size / PATCH) ** 2
        if last in name:
            for number in range(old.num_hidden_layers - 1, layers - 1):
                silent = "out_proj" in name or "fc2" in name
                copy = torch.zeros_like(value) if silent else value.clone()
                moved[name.replace(last, f"encoder.layers.{number}.")] = copy
            name = name.replace(last, f"encoder.layers.{layers - 1}.")
        moved[name] = value
    encoder.load_state_dict(moved)
    return encoder


class Teaching(nn.Module):
    def __init__(self, encoder: CLIPVisionModelWithProjection, spread: tuple[np.ndarray, np.ndarray]):
        super().__init__()
        self.encoder, self.processor = encoder, create_processor()
        width = encoder.config.hidden_size
        mean, std = (torch.from_numpy(values) for values in spread)
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.counts = [len(values) for values in CLASSES.values()]
        self.heads = nn.ModuleList(
            [nn.Sequential(nn.LayerNorm(width), nn.Linear(width, sum(self.counts) + len(mean))) for _ in range(2)]
        )
        self.identity = nn.Linear(width, width)

    def forward(self, pixels: torch.Tensor) -> tuple[list[list[torch.Tensor]], torch.Tensor]:
        """Logits of each class and standardized measures, by each head, and what tells people apart."""
        output = self.encoder.vision_model(pixels, output_hidden_states=True)
        states = output.hidden_states[HIDDEN_LAYER]
        read = [head(tokens) for head, tokens in zip(self.heads, (states[:, 0], states[:, 1:].mean(1)))]
        return [list(found.split([*self.counts, len(self.mean)], 1)) for found in read], self.identity(
            output.pooler_output
        )

    def losses(self, heads: np.ndarray, classes: np.ndarray, wanted: np.ndarray) -> dict[str, torch.Tensor]:
        """Of 2 P heads, the first and the second views of P people."""
        found, identity = self(to_pixels(heads, self.processor))
        labels, numbers = torch.from_numpy(classes), (torch.from_numpy(wanted) - self.mean) / self.std
        named = [F.cross_entropy(logits, labels[:, k]) for read in found for k, logits in enumerate(read[:-1])]
        measured = torch.stack([(read[-1] - numbers).square().mean() for read in found]).mean()
        first, second = identity.chunk(2)
        return {
            "classes": torch.stack(named).nan_to_num().sum() / len(found),
            "measures": MEASURES_WEIGHT * measured,
            "views": VIEWS_WEIGHT * contrast(first, second, torch.tensor(10.0)),
        }


def reader_path(folder: Path) -> Path:
    return Path(folder) / "reader.pt"


def load_reader(folder: Path) -> Teaching:
    """The encoder with the heads that it was taught by, averaged weights, from the folder that this writes."""
    config = CLIPVisionConfig.from_pretrained(Path(folder) / "image_encoder")
    state = torch.load(reader_path(folder), weights_only=True)
    reader = Teaching(CLIPVisionModelWithProjection(config), (state["mean"].numpy(), state["std"].numpy()))
    reader.load_state_dict(state)
    return reader.eval()


def batch(data: LabeledHeads, weights: np.ndarray, rng: np.random.Generator):
    people = rng.choice(len(weights), PEOPLE, replace=False, p=weights)
    views = np.stack([rng.choice(data.heads.shape[1], 2, replace=False) for _ in people], 1)
    places = [(person, view) for side in views for person, view in zip(people, side)]
    heads = np.stack([data.variant(person, view, rng) for person, view in places])
    classes = np.stack([data.classes[place] for place in places])
    return heads, classes, data.measures[[person for person, _ in places]]


@torch.no_grad()
def accuracies(model: Teaching, data: LabeledHeads, views: int, photos: bool) -> dict[str, float]:
    """The share of right answers to each class, by the class token's head."""
    rng = np.random.default_rng(2)
    right: dict[str, list[torch.Tensor]] = {name: [] for name in CLASSES}
    for view in range(views):
        heads = data.heads[:, view]
        if photos:
            heads = np.stack([photo_like(h, b, rng) for h, b in zip(heads, data.backgrounds[:, view])])
        found = model(to_pixels(heads, model.processor))[0][0]
        for k, name in enumerate(CLASSES):
            labels = torch.from_numpy(data.classes[:, view, k])
            right[name].append((found[k].argmax(1) == labels)[labels != UNKNOWN])
    return {name: torch.cat(answers).float().mean().item() for name, answers in right.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--start", type=Path, required=True, help="folder of the image encoder to start from")
    parser.add_argument("--output", default="taught", help="folder under the work directory (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    folder = Path(args.work_dir) / args.output
    train, held_out = LabeledHeads(args.work_dir, "train"), LabeledHeads(args.work_dir, "validation")
    start = CLIPVisionModelWithProjection.from_pretrained(args.start, dtype=torch.float32)
    model = Teaching(enlarged(start), (train.measures.mean(0), train.measures.std(0) + 1e-6))
    average = Average(model, 0.998)
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.05)
    step = load_checkpoint(folder / "training.pt", model, average, optimizer, rng)
    print(f"{len(train.heads)} people, step {step}", flush=True)
    weights, started, first = train.sampling_weights(), time.time(), step
    while step < args.steps:
        losses = model.losses(*batch(train, weights, rng))
        descend(
            torch.stack(list(losses.values())).sum(),
            model,
            average,
            optimizer,
            learning_rate(LEARNING_RATE, step, args.steps),
            step,
        )
        step += 1
        if step % 250 == 0 or step == args.steps:
            with average:
                found = [accuracies(model.eval(), held_out, 3, photos) for photos in (False, True)]
                folder.mkdir(parents=True, exist_ok=True)
                with atomic_file(reader_path(folder)) as temporary:
                    torch.save(model.state_dict(), temporary)
                model.encoder.save_pretrained(folder / "image_encoder")
                model.processor.save_pretrained(folder / "image_encoder")
            model.train()
            shares = ", ".join(f"{name} {found[0][name]:.2f}/{found[1][name]:.2f}" for name in CLASSES)
            trained = ", ".join(f"{name} {value.item():.2f}" for name, value in losses.items())
            pace = (time.time() - started) / (step - first)
            print(f"step {step}: {shares} (rendered/photo-like); {trained}; {pace:.2f} s a step", flush=True)
        if step % 50 == 0 or step == args.steps:
            save_checkpoint(folder / "training.pt", step, model, average, optimizer, rng)


if __name__ == "__main__":
    main()
