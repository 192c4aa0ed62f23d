"""How near landmarks can come to the true ones, in the cases of the evaluation set: the bounds of what steers FaceSnap.

    python check_landmarks.py --people 100

Prints mean distances of the 68 points from the renderer's own in the true picture, by the distance of the outer eye
corners: another person's points in the same scene; what the predictor re-targets from the reference's points as they are,
from those that dlib finds, and from the mean face's, which are nobody's; and what dlib finds in the true picture itself.
"""

from __future__ import annotations

import argparse
import itertools
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import numpy as np
from dataset import SEED, SPLITS
from eval_set import face_box, head_pose, landmarks, scenes
from people.renderer import Renderer
from people.sampling import sample_person

from facesnap_diffusers import DlibFaceAnalyzer, Expression, load_landmark_predictor
from facesnap_diffusers.evaluation.cases import Case
from facesnap_diffusers.evaluation.features import FoundFace
from facesnap_diffusers.evaluation.metrics import landmark_nme
from facesnap_diffusers.evaluation.targets import retargeted_landmarks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=len(SPLITS["test"]))
    parser.add_argument("--cases", type=int, default=2)
    args = parser.parse_args()
    renderer, analyzer, predictor = Renderer(), DlibFaceAnalyzer(), load_landmark_predictor()
    model, size = renderer.model, renderer.size
    errors: dict[str, list[float]] = defaultdict(list)
    for number, index in enumerate(SPLITS["test"][: args.people]):
        person = sample_person(SEED, index)
        other = sample_person(SEED, SPLITS["test"][(number + 1) % len(SPLITS["test"])])
        reference, *targets = itertools.islice(scenes(model, index, person, size), 1 + args.cases)
        reference_faces = analyzer.analyze(renderer.render(person, reference).image)
        mean = replace(person, shape=np.zeros_like(person.shape))
        read = {
            "the reference's own points": landmarks(model, person, reference, size).astype(np.float32),
            "the mean face's": landmarks(model, mean, reference, size).astype(np.float32),
        }
        if reference_faces:
            read["dlib's of the reference"] = reference_faces[0].landmarks
        for scene in targets:
            ground_truth = landmarks(model, person, scene, size)
            case = Case(
                id="case",
                person="person",
                reference=(Path("reference.png"),),
                prompt="",
                seed=0,
                pose=head_pose(scene),
                expression=Expression.from_vector(scene.expression, model.expression_names),
                face_box=tuple(face_box(model, person, scene, size).tolist()),
            )
            errors["another person's"].append(landmark_nme(landmarks(model, other, scene, size), ground_truth))
            for name, points in read.items():
                face = FoundFace(points, np.ones(1, np.float32), (size, size))
                target = retargeted_landmarks(predictor, case, face, size, size)
                errors[f"re-targeted from {name}"].append(landmark_nme(target, ground_truth))
            for face in analyzer.analyze(renderer.render(person, scene).image)[:1]:
                errors["dlib's of the true picture"].append(landmark_nme(face.landmarks, ground_truth))
    for name, values in errors.items():
        print(f"{name:50} {np.mean(values):.3f} (median {np.median(values):.3f}, {len(values)} pictures)")


if __name__ == "__main__":
    main()
