"""Do recognizers made for real faces see the rendered people as people? Prints what dlib makes of the test split.

python check_people.py --people 60 --views 4
"""

from __future__ import annotations

import argparse

import dlib
import numpy as np
from dataset import Shard, shard_paths
from workspace import add_work_dir

from facesnap_diffusers.faces.analyzers.dlib import RECOGNIZER_FILE, dlib_models


class DlibFaces:
    """dlib's frontal detector (one doubling in size) and its 128-d recognizer."""

    def __init__(self):
        folder = dlib_models()
        self.detector = dlib.get_frontal_face_detector()
        self.landmarks = dlib.shape_predictor(str(folder / "shape_predictor_5_face_landmarks.dat"))
        self.recognizer = dlib.face_recognition_model_v1(str(folder / RECOGNIZER_FILE))

    def embed(self, image: np.ndarray) -> np.ndarray | None:
        """(128,) of the largest face of an RGB picture, None where it finds none."""
        boxes = self.detector(image, 1)
        if not boxes:
            return None
        box = max(boxes, key=lambda b: b.area())
        return np.array(self.recognizer.compute_face_descriptor(image, self.landmarks(image, box)))


def area_under_curve(same: np.ndarray, different: np.ndarray) -> float:
    """Probability that a distance within a person is smaller than one between people."""
    ranks = np.argsort(np.argsort(np.concatenate([same, different])))[: len(same)] + 1
    smaller = ranks.sum() - len(same) * (len(same) + 1) / 2
    return 1 - smaller / (len(same) * len(different))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--people", type=int, default=60)
    parser.add_argument("--views", type=int, default=4)
    args = parser.parse_args()
    shards = [Shard.load(path) for path in shard_paths(args.work_dir, "test")]
    images = np.concatenate([shard.images for shard in shards])[: args.people, : args.views]
    faces = DlibFaces()
    embeddings_of = {
        (i, j): faces.embed(np.ascontiguousarray(images[i, j])) for i in range(len(images)) for j in range(args.views)
    }
    known = {key: value for key, value in embeddings_of.items() if value is not None}
    people = np.array([i for i, _ in known])
    embeddings = np.stack(list(known.values()))
    distance = np.linalg.norm(embeddings[:, None] - embeddings[None], axis=-1)
    upper = np.triu(np.ones_like(distance, bool), 1)
    is_same = people[:, None] == people[None]
    same, different = distance[upper & is_same], distance[upper & ~is_same]
    np.fill_diagonal(distance, np.inf)
    first = is_same[np.arange(len(people)), distance.argmin(1)].mean()
    print(f"faces found: {len(known)} of {len(embeddings_of)}")
    print(f"distance, same person: median {np.median(same):.3f}, 90th percentile {np.percentile(same, 90):.3f}")
    print(
        f"distance, different people: median {np.median(different):.3f}, 10th percentile {np.percentile(different, 10):.3f}"
    )
    print(f"area under the ROC curve: {area_under_curve(same, different):.4f}")
    print(f"nearest other picture is of the same person: {first:.1%}")


if __name__ == "__main__":
    main()
