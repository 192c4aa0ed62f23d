"""
Training samples a second that one process makes of prepared photos on one core: what `data.workers` of them give together.

    OMP_NUM_THREADS=1 python benchmarks/loader.py                   # pictures of 512 pixels
    OMP_NUM_THREADS=1 python benchmarks/loader.py --side 1024       # of SDXL
    OMP_NUM_THREADS=1 python benchmarks/loader.py --profile         # and where the time goes

The photos are those of openpeople, stored as `facesnap prepare` stores them (JPEG, the shorter side 1.3 times that of the
picture), with a crop of 336 pixels for the image encoder and one of 112 for the recognizer. Samples are what the shipped
configs ask for: a new crop of a photo, landmarks retargeted from another photo of the person, the crop for CLIP changed in
color, noise. Seconds are those of the process, so that other processes count little; the first samples are left out.
"""

from __future__ import annotations

import argparse
import cProfile
import pstats
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from transformers import CLIPImageProcessor

from facesnap_diffusers import load_landmark_predictor
from facesnap_diffusers.data.prepared_face import make_face
from facesnap_diffusers.data.shard_settings import PrepareConfig
from facesnap_diffusers.data.shards import PreparedFaces, ShardWriter
from facesnap_diffusers.training.samples import TrainingSamples, collate
from facesnap_diffusers.training.training_config import DataConfig, DropoutConfig


sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tiny_preparation import frontal_points, portrait


def write_faces(folder: Path, side: int, people: int = 4) -> None:
    """Two photos of each person, with landmarks in the middle of the picture: where they are costs nothing."""
    config = PrepareConfig(resolution=side)
    settings, predictor = config.shard_settings(), load_landmark_predictor()
    with ShardWriter(folder, settings) as writer:
        for person in range(1, people + 1):
            for kind in ("studio_portrait", "amateur_selfie"):
                image = np.array(portrait(person, kind, side=4 * side))
                landmarks = frontal_points() * min(image.shape[:2]) / 100
                embedding = np.random.default_rng(person).standard_normal(512)
                embedding = (embedding / np.linalg.norm(embedding)).astype(np.float32)
                info = {"identity": str(person)}
                face = make_face(
                    image, landmarks, embedding, predictor, settings, info=info, min_side=config.stored_side
                )
                writer.add(face, f"{person}-{kind}")


def make_samples(folder: Path, side: int) -> TrainingSamples:
    return TrainingSamples(
        PreparedFaces([str(folder)]),
        DataConfig(shards=[str(folder)], resolution=side),
        DropoutConfig(),
        load_landmark_predictor(),
        CLIPImageProcessor(),  # CLIP's, as `openai/clip-vit-large-patch14` has them
        224,
        1000,
        (4, side // 8, side // 8),
        extras=(),
    )


def measure(samples: TrainingSamples, batches: int, batch: int = 8) -> list[float]:
    """CPU seconds a sample, one for each batch but the first."""
    seconds = []
    for number in range(batches + 1):
        start = time.process_time()
        collate([samples[number * batch + place] for place in range(batch)])
        seconds.append((time.process_time() - start) / batch)
    return seconds[1:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=512, help="of the pictures, in pixels")
    parser.add_argument("--batches", type=int, default=20, help="of eight samples")
    parser.add_argument("--profile", action="store_true", help="prints the functions that take most")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        write_faces(Path(folder), arguments.side)
        samples = make_samples(Path(folder), arguments.side)
        sizes = {samples.faces[index].info["size"][0] for index in range(len(samples.faces))}
        seconds = measure(samples, arguments.batches)
        print(
            f"{arguments.side} pixels, of photos {min(sizes)} to {max(sizes)} wide: {1 / statistics.median(seconds):.1f}"
            f" samples a second of one core ({1 / max(seconds):.1f} to {1 / min(seconds):.1f} by batch)"
        )
        if arguments.profile:
            with cProfile.Profile(time.process_time) as profile:
                measure(samples, arguments.batches)
            statistics_of_calls = pstats.Stats(profile)
            statistics_of_calls.sort_stats("tottime").print_stats(15)
            statistics_of_calls.sort_stats("cumtime").print_stats("facesnap_diffusers", 25)


if __name__ == "__main__":
    main()
