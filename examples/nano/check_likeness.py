"""Likeness by a second judge, to which no loss listens (`train_face_judge.py`).

    python check_likeness.py results/FaceSnap          # folders of pictures that `facesnap eval` made

Prints the median distance between pictures and references (1 - cosine), and how often a picture's own person is the first or
among the first five of all. The faces are those that `facesnap eval` found by dlib; a picture without one has a distance of 1
and is not found. The true pictures are judged beside them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from dataset import TO_PACKAGE
from train_face_judge import aligned, embed, load_face_judge
from workspace import add_work_dir

from facesnap_diffusers import DlibFaceAnalyzer
from facesnap_diffusers.evaluation.benchmarks.nano import nano
from facesnap_diffusers.evaluation.features import FeatureStore


def found_face(path: Path, store: FeatureStore) -> torch.Tensor | None:
    """The face in a picture, aligned, (3, 64, 64)."""
    face = store.get(path).faces.get(DlibFaceAnalyzer.encoder)
    if face is None:
        return None
    picture = np.array(PIL.Image.open(path).convert("RGB"))
    return aligned(picture[None], face.landmarks[None, :, :2] - TO_PACKAGE)[0]


def likeness(embeds: torch.Tensor, own: torch.Tensor, references: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance of each picture to its person's reference, and how many other references are nearer."""
    cosines = embeds @ references.T
    to_own = cosines.gather(1, own[:, None])
    return 1 - to_own[:, 0], (cosines > to_own).sum(1).float()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("folders", type=Path, nargs="+", help="of pictures, named after their cases")
    parser.add_argument("--eval-set", type=Path, help="folder (default: eval-set in the work directory)")
    args = parser.parse_args()
    judge, analyzers = load_face_judge(args.work_dir), [DlibFaceAnalyzer()]
    cases = list(nano(args.eval_set or Path(args.work_dir) / "eval-set").cases)
    people = {case.person: case for case in cases}
    pictures = np.stack([np.array(PIL.Image.open(case.reference[0]).convert("RGB")) for case in people.values()])
    landmarks = np.array([case.reference_landmarks for case in people.values()]) - TO_PACKAGE
    references = embed(judge, aligned(pictures, landmarks))
    own = torch.tensor([list(people).index(case.person) for case in cases])

    sources = [("the true pictures", args.folders[0], [case.ground_truth for case in cases])]
    sources += [(str(folder), folder, [folder / f"{case.id}.png" for case in cases]) for folder in args.folders]
    for name, folder, paths in sources:
        store = FeatureStore(folder.parent / "features", analyzers)
        faces = [found_face(path, store) for path in paths]
        found = torch.tensor([face is not None for face in faces])
        distances, ranks = torch.ones(len(cases)), torch.full((len(cases),), torch.inf)
        if found.any():
            embeds = embed(judge, torch.stack([face for face in faces if face is not None]))
            distances[found], ranks[found] = likeness(embeds, own[found], references)
        first, five = ((ranks < count).float().mean() for count in (1, 5))
        print(f"{name}: distance {distances.median():.3f}, first {first:.1%}, among five {five:.1%}", flush=True)


if __name__ == "__main__":
    main()
