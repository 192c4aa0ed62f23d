"""A second judge of likeness, to which no loss listens: the adapter's image encoder, which sees the head with its hair.

    python check_likeness.py results/FaceSnap          # folders of pictures that `facesnap eval` made

Prints the median cosine between pictures and references (pooled states, relative to their mean over all references), and
how often a picture's own person is the first or among the first five. The true pictures are judged beside them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection
from workspace import add_work_dir

from facesnap_diffusers import DlibFaceAnalyzer
from facesnap_diffusers.evaluation.benchmarks.nano import nano
from facesnap_diffusers.faces.alignment import align_for_clip
from facesnap_diffusers.nano.model import SHIPPED_NANO


class Judge:
    def __init__(self, folder: Path):
        self.encoder = CLIPVisionModelWithProjection.from_pretrained(folder).eval()
        self.processor = CLIPImageProcessor.from_pretrained(folder)
        self.analyzer = DlibFaceAnalyzer()

    @torch.no_grad()
    def states(self, path: Path, landmarks: np.ndarray | None = None) -> torch.Tensor | None:
        """Pooled states of the largest head in a picture, None where there is no face."""
        picture = np.array(PIL.Image.open(path).convert("RGB"))
        if landmarks is None:
            faces = self.analyzer.analyze(picture)
            if not faces:
                return None
            landmarks = max(faces, key=lambda face: np.prod(face.box[2:] - face.box[:2])).landmarks
        head = align_for_clip(picture, landmarks, self.encoder.config.image_size)
        pixels = self.processor(PIL.Image.fromarray(head), return_tensors="pt").pixel_values
        return self.encoder.vision_model(pixels).pooler_output[0]


def report(name: str, all_states: list[torch.Tensor | None], own: list[int], references: torch.Tensor):
    mean = references.mean(0)
    known = [(states, person) for states, person in zip(all_states, own) if states is not None]
    cosines = torch.stack([F.cosine_similarity(states - mean, references - mean) for states, _ in known])
    people = torch.tensor([person for _, person in known])[:, None]
    likeness = cosines.gather(1, people)
    rank = (cosines > likeness).sum(1)
    first, five = ((rank < count).sum() / len(all_states) for count in (1, 5))
    print(f"{name}: cosine {likeness.median():.3f}, first {first:.1%}, among five {five:.1%}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("folders", type=Path, nargs="*", help="of pictures, named after their cases")
    parser.add_argument("--image-encoder", type=Path, default=SHIPPED_NANO / "adapter/image_encoder")
    args = parser.parse_args()
    judge, cases = Judge(args.image_encoder), nano(args.work_dir / "eval-set").cases
    people = {case.person: case for case in cases}
    gallery = torch.stack(
        [judge.states(case.reference[0], np.array(case.reference_landmarks)) for case in people.values()]
    )
    own = [list(people).index(case.person) for case in cases]
    report("the true pictures", [judge.states(case.ground_truth) for case in cases], own, gallery)
    for folder in args.folders:
        report(folder.name, [judge.states(folder / f"{case.id}.png") for case in cases], own, gallery)


if __name__ == "__main__":
    main()
