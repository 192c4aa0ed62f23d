"""dlib's embeddings of the first views of every rendered person.

Run again to continue, or to take in new shards.

    python embed_faces.py --split train

The chips are cut by the renderer's own landmarks: no detector runs, and a tilted head costs nothing. The embeddings are
within 0.1 of those of dlib's own detector and landmarks, a third of the distance between two views of a person.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import dlib
import numpy as np
import torch
from dataset import SPLITS, Shard, shard_paths
from train_autoencoder import to_tensor
from workspace import add_work_dir, save_array

from facesnap_diffusers.training.dlib_network import load_dlib_network


EMBEDDED_VIEWS = 5
CHIP = 150


def chip(image: np.ndarray, landmarks: np.ndarray) -> np.ndarray:
    """dlib's crop (150, 150, 3) of a face with the given landmarks (72, 2)."""
    points = [dlib.point(*map(round, point)) for point in (landmarks[:68] - 0.5).tolist()]
    whole = dlib.rectangle(0, 0, image.shape[1] - 1, image.shape[0] - 1)
    return dlib.get_face_chip(np.ascontiguousarray(image), dlib.full_object_detection(whole, points), size=CHIP)


def embedding_path(work_dir: Path, shard: Path) -> Path:
    return Path(work_dir) / "embeddings" / shard.parent.name / f"{shard.stem}.npy"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--split", choices=list(SPLITS), default="train")
    args = parser.parse_args()
    network = load_dlib_network()
    for path in shard_paths(args.work_dir, args.split):
        output = embedding_path(args.work_dir, path)
        if output.exists():
            continue
        start, shard = time.time(), Shard.load(path)
        views = zip(shard.images[:, :EMBEDDED_VIEWS], shard.landmarks[:, :EMBEDDED_VIEWS])
        chips = [to_tensor(np.stack([chip(image, points) for image, points in zip(*person)])) for person in views]
        with torch.no_grad():
            embeddings = torch.stack([network(of_person) for of_person in chips]).numpy()
        save_array(output, embeddings)
        print(f"{path.name}: {embeddings.shape[0] * EMBEDDED_VIEWS / (time.time() - start):.1f} faces/s", flush=True)
    if args.split == "train":
        everybody = [np.load(embedding_path(args.work_dir, path)) for path in shard_paths(args.work_dir, args.split)]
        save_array(args.work_dir / "embeddings/center.npy", np.concatenate(everybody).mean((0, 1)))


if __name__ == "__main__":
    main()
