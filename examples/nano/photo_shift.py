"""How far photos lie from rendered people in an adapter's features: the difference of the means, for `nano.photos`.

    python photo_shift.py path/to/photos --adapter ../../src/facesnap_diffusers/assets/nano/adapter

Of each photo the largest face that dlib finds is taken; those that `photo_labels.csv` names are left out, for `check_photos.py`
judges by them. Rendered people are the embedded ones of the training split. Writes two tensors: what is to be added to a
photo's embedding and to the image encoder's states of it.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from check_photos import LABELS, LARGEST, largest
from dataset import TO_PACKAGE, Shard, shard_paths
from embed_faces import embedding_path
from safetensors.torch import save_file
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
from workspace import add_work_dir

from facesnap_diffusers import DlibFaceAnalyzer
from facesnap_diffusers.faces.alignment import align_for_clip
from facesnap_diffusers.files import atomic_file
from facesnap_diffusers.models.image_encoder import image_hidden_states
from facesnap_diffusers.nano.model import SHIPPED_NANO
from facesnap_diffusers.nano.photos import SHIFT_FILE


VIEWS, SHARDS = 2, 15  # of each person, and of how many files of people, to the image encoder


def of_photos(paths: list[Path], size: int) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings (N, 128) and heads (N, size, size, 3) of the photos with a face."""
    analyzer, embeddings, heads = DlibFaceAnalyzer(), [], []
    for path in paths:
        picture = PIL.Image.open(path).convert("RGB")
        picture.thumbnail((LARGEST, LARGEST))
        image = np.array(picture)
        faces = analyzer.analyze(image)
        if faces:
            face = largest(faces)
            embeddings.append(face.embedding)
            heads.append(align_for_clip(image, face.landmarks, size))
    return np.stack(embeddings), np.stack(heads)


def of_people(work_dir: Path, size: int) -> tuple[np.ndarray, np.ndarray]:
    """The same of rendered people."""
    paths = [path for path in shard_paths(work_dir, "train") if embedding_path(work_dir, path).exists()]
    embeddings = [np.load(embedding_path(work_dir, path)) for path in paths]
    heads = []
    for shard in map(Shard.load, paths[:SHARDS]):
        for view in range(VIEWS):
            points = shard.landmarks[:, view] + TO_PACKAGE
            heads += [align_for_clip(i, p, size) for i, p in zip(shard.images[:, view], points)]
    return np.concatenate(embeddings).reshape(-1, embeddings[0].shape[-1]), np.stack(heads)


@torch.no_grad()
def mean_states(
    encoder: CLIPVisionModelWithProjection, processor: CLIPImageProcessor, heads: np.ndarray
) -> torch.Tensor:
    """(places, width)"""
    total = torch.zeros(())
    for start in range(0, len(heads), 50):
        pixels = processor(list(heads[start : start + 50]), return_tensors="pt").pixel_values
        total = total + image_hidden_states(encoder, pixels).sum(0)
    return total / len(heads)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("photos", type=Path, help="folder of photos (*.jpg)")
    parser.add_argument("--adapter", type=Path, default=SHIPPED_NANO / "adapter")
    parser.add_argument("--output", type=Path, default=SHIPPED_NANO / SHIFT_FILE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folder = args.adapter / "image_encoder"
    encoder = CLIPVisionModelWithProjection.from_pretrained(folder, dtype=torch.float32).eval()
    processor = CLIPImageProcessor.from_pretrained(folder)
    with open(LABELS, newline="") as file:
        judged = {row["file"] for row in csv.DictReader(file)}
    paths = [path for path in sorted(args.photos.glob("*.jpg")) if path.name not in judged]
    sources = of_photos(paths, encoder.config.image_size), of_people(args.work_dir, encoder.config.image_size)
    photo_faces, rendered_faces = (torch.from_numpy(embeddings).float().mean(0) for embeddings, _ in sources)
    photo_states, rendered_states = (mean_states(encoder, processor, heads) for _, heads in sources)
    shift = {"face_embeds": rendered_faces - photo_faces, "image_hidden_states": rendered_states - photo_states}
    with atomic_file(args.output) as temporary:
        save_file({name: value.half() for name, value in shift.items()}, temporary)
    print(f"{args.output}: {len(sources[0][0])} photos, {len(sources[1][0])} rendered views")


if __name__ == "__main__":
    main()
