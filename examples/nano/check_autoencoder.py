"""What the autoencoder leaves of a face: PSNR and dlib's distance between test pictures and their reconstructions.

python check_autoencoder.py --people 50
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from check_people import DlibFaces
from dataset import Shard, shard_paths
from train_autoencoder import FEATURE_WEIGHT, feature_weights, peak_signal_to_noise, to_images, to_tensor
from train_base import load_autoencoder
from workspace import add_work_dir


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--people", type=int, default=50)
    args = parser.parse_args()
    shards = [Shard.load(path) for path in shard_paths(args.work_dir, "test")]
    images = np.concatenate([shard.images[:, 0] for shard in shards])[: args.people]
    landmarks = np.concatenate([shard.landmarks[:, 0] for shard in shards])[: args.people]
    vae = load_autoencoder(args.work_dir)
    weights = torch.from_numpy(np.stack([feature_weights(points, 128, FEATURE_WEIGHT) for points in landmarks]))
    whole, features = peak_signal_to_noise(vae, to_tensor(images), weights)
    print(f"{len(images)} test pictures: PSNR {whole:.2f} dB, eyes and mouth {features:.2f} dB")
    with torch.no_grad():
        output = to_images(vae(to_tensor(images)).sample)
    faces = DlibFaces()
    before, after = ([faces.embed(np.ascontiguousarray(image)) for image in x] for x in (images, output))
    pairs = [(a, b) for a, b in zip(before, after) if a is not None and b is not None]
    distance = [np.linalg.norm(a - b) for a, b in pairs]
    count = sum(b is not None for b in after)
    print(
        f"faces found in reconstructions: {count} of {len(after)}; distance to the original: median {np.median(distance):.3f}"
    )


if __name__ == "__main__":
    main()
