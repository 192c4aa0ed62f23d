"""How good is the base model by now? Samples captions of people it never saw and measures the pictures.

    python check_base.py --count 100

Prints, for renders and for samples of the same captions: the share in which dlib finds a face, and the share whose
background has the colour that the caption names. Writes the samples as `base/check.png`.
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np
import torch
from check_people import DlibFaces
from dataset import Shard, shard_paths
from export import load_trained
from people.captions import caption
from people.sampling import BACKGROUND_COLORS
from train_base import create_pipeline
from workspace import add_work_dir

from facesnap_diffusers.evaluation.metrics import background_color


def report(name: str, images: list[np.ndarray], backgrounds: list[str], faces: DlibFaces):
    share_with_face = np.mean([faces.embed(np.ascontiguousarray(image)) is not None for image in images])
    right = np.mean([background_color(image, BACKGROUND_COLORS) == color for image, color in zip(images, backgrounds)])
    print(f"{name}: faces found {share_with_face:.1%}, background right {right:.1%}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    shards = [Shard.load(path) for path in shard_paths(args.work_dir, "validation")]
    renders, attributes = [], []
    for shard in shards:
        renders += [images[0] for images in shard.images]
        attributes += [views[0] for views in shard.attributes]
    renders, attributes = renders[: args.count], attributes[: args.count]
    backgrounds = [a["background"] for a in attributes]

    model, vae, step = load_trained(args.work_dir)
    pipeline = create_pipeline(model, vae)
    samples = []
    for start in range(0, len(attributes), 20):
        prompts = [caption(a) for a in attributes[start : start + 20]]
        generators = [torch.Generator().manual_seed(start + k) for k in range(len(prompts))]
        output = pipeline(
            prompts,
            num_inference_steps=args.steps,
            guidance_scale=3.0,
            guidance_rescale=0.7,
            generator=generators,
            output_type="np",
        )
        samples += list((output.images * 255).round().astype(np.uint8))
    faces = DlibFaces()
    print(f"after {step} steps, {len(samples)} captions")
    report("renders", renders, backgrounds, faces)
    report("samples", samples, backgrounds, faces)
    samples += [np.full_like(samples[0], 255)] * (-len(samples) % 10)
    rows = [np.concatenate(samples[k : k + 10], 1) for k in range(0, len(samples), 10)]
    cv2.imwrite(str(args.work_dir / "base/check.png"), np.concatenate(rows)[..., ::-1])


if __name__ == "__main__":
    main()
