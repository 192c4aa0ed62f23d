"""Writes the folder that `facesnap eval --benchmark nano` reads: held-out people, each in other scenes than their reference.

    python eval_set.py --people 100 --cases 2

The reference looks roughly ahead; every case asks for another expression and for a head turned by 20 degrees or more
from it. The prompt says what the scene is and nothing about the person. The true picture is rendered.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import PIL.Image
from dataset import SEED, SPLITS, TO_PACKAGE
from people.captions import OPENING, scene_clauses
from people.face_model import FaceModel, rotation_matrix
from people.renderer import Renderer, pose_points, project
from people.sampling import BACKGROUND_COLORS, Person, Scene, sample_person, sample_scene
from workspace import add_work_dir

from facesnap_diffusers import Expression, HeadPose
from facesnap_diffusers.evaluation.benchmarks.nano import FORMAT, MANIFEST, VERSION


REFERENCE_YAW, REFERENCE_PITCH = 15, 8
REFERENCE_EXPRESSIONS = ("neutral", "smiling")
LEAST_TURN = 20.0
LEAST_MOVE = 0.2  # cm, of the landmarks on average


def head_pose(scene: Scene) -> HeadPose:
    """The same rotation in the package's angles: first yaw, then pitch, then roll, with the signs of the picture."""
    rotation = rotation_matrix(scene.yaw, scene.pitch, scene.roll)
    yaw = np.arctan2(-rotation[2, 0], rotation[2, 2])
    pitch = -np.arcsin(rotation[2, 1])
    roll = np.arctan2(rotation[0, 1], rotation[1, 1])
    return HeadPose(*np.rad2deg([yaw, pitch, roll]).tolist())


def turn_between(one: Scene, other: Scene) -> float:
    """The angle in degrees by which the head turns from a scene to another."""
    first, second = (rotation_matrix(scene.yaw, scene.pitch, scene.roll) for scene in (one, other))
    return float(np.rad2deg(np.arccos(np.clip((np.trace(first.T @ second) - 1) / 2, -1, 1))))


def expression_move(model: FaceModel, expression: np.ndarray) -> np.ndarray:
    """How an expression moves the 72 points, in cm."""
    return np.tensordot(expression, model.expression[:, model.landmarks], 1)


def neutral_landmarks(model: FaceModel, person: Person) -> np.ndarray:
    """The 72 points of a person from the front, in cm."""
    return model.vertices[model.landmarks] + np.tensordot(person.shape, model.identity[:, model.landmarks], 1)


def landmarks(model: FaceModel, person: Person, scene: Scene, size: int) -> np.ndarray:
    """The 72 points (72, 2) of a person in a scene, in the package's pixels."""
    points = neutral_landmarks(model, person) + expression_move(model, scene.expression)
    posed = pose_points(points, rotation_matrix(scene.yaw, scene.pitch, scene.roll))
    return project(posed, scene.camera, size) + TO_PACKAGE


def face_box(model: FaceModel, person: Person, scene: Scene, size: int) -> np.ndarray:
    """Where the person's frontal, neutral landmarks lie: left, top, right, bottom as shares of the picture.

    The package has no perspective, and its heads turn about the middle of the mean face's landmarks. So the box is the
    frontal face's under the scale and place that bring the posed face, seen that way, nearest to where it is.
    """
    neutral = neutral_landmarks(model, person) - model.vertices[model.landmarks].mean(0)
    moved = neutral + expression_move(model, scene.expression)
    posed = moved @ rotation_matrix(scene.yaw, scene.pitch, scene.roll).T
    down = np.array([1, -1])
    source, target = posed[:, :2] * down, landmarks(model, person, scene, size)
    spread = source - source.mean(0)
    scale = (spread * (target - target.mean(0))).sum() / np.square(spread).sum()
    frontal = scale * (neutral[:, :2] * down - source.mean(0)) + target.mean(0)
    return np.concatenate([frontal.min(0), frontal.max(0)]) / size


def is_other(model: FaceModel, one: Scene, other: Scene) -> bool:
    """Whether one can tell two expressions apart."""
    move = expression_move(model, one.expression - other.expression)
    return float(np.linalg.norm(move, axis=1).mean()) >= LEAST_MOVE


def scenes(model: FaceModel, index: int, person: Person, size: int) -> Iterator[Scene]:
    """The person's scenes: first that of the reference, then, without end, those that clearly differ from it and from one another."""
    views = (sample_scene(SEED, index, view, model.expression_index) for view in itertools.count())
    reference = next(
        scene
        for scene in views
        if abs(scene.yaw) <= REFERENCE_YAW
        and abs(scene.pitch) <= REFERENCE_PITCH
        and scene.expression_name in REFERENCE_EXPRESSIONS
    )
    yield reference
    targets: list[Scene] = []
    for scene in views:
        if turn_between(reference, scene) < LEAST_TURN:
            continue
        box = face_box(model, person, scene, size)
        if box.min() >= 0 and box.max() <= 1 and all(is_other(model, scene, old) for old in (reference, *targets)):
            targets.append(scene)
            yield scene


def write_eval_set(
    folder: Path, renderer: Renderer, people: int, cases: int, scenes: Callable[..., Iterator[Scene]] = scenes
) -> None:
    """Renders and writes everything, the manifest last. `scenes` gives the reference's scene, then those of the cases."""
    model, size = renderer.model, renderer.size
    names = [f"{index:04d}" for index in SPLITS["test"][:people]]
    entries, references = [], {}
    for number, (name, index) in enumerate(zip(names, SPLITS["test"][:people])):
        person = sample_person(SEED, index)
        other = sample_person(SEED, SPLITS["test"][(number + 1) % len(SPLITS["test"])])
        reference, *targets = itertools.islice(scenes(model, index, person, size), 1 + cases)
        (folder / name).mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(renderer.render(person, reference).image).save(folder / name / "reference.png")
        references[name] = {
            "reference": [f"{name}/reference.png"],
            "landmarks": landmarks(model, person, reference, size).round(3).tolist(),
        }
        for letter, scene in zip("abcdefghij", targets):
            ground_truth = f"{name}/{letter}.png"
            PIL.Image.fromarray(renderer.render(person, scene).image).save(folder / ground_truth)
            entries.append(
                {
                    "id": f"{name}-{letter}",
                    "person": name,
                    "prompt": ", ".join([OPENING, *scene_clauses(scene.attributes)]),
                    "pose": [round(angle, 3) for angle in head_pose(scene).as_tuple()],
                    "expression": Expression.from_vector(scene.expression, model.expression_names).weights,
                    "face_box": face_box(model, person, scene, size).round(5).tolist(),
                    "ground_truth": ground_truth,
                    "driving_landmarks": landmarks(model, other, scene, size).round(3).tolist(),
                    "background": scene.background_name,
                    "seed": len(entries),
                    "group": scene.expression_name,
                }
            )
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "background_colors": {name: list(color) for name, color in BACKGROUND_COLORS.items()},
        "people": references,
        "cases": entries,
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--people", type=int, default=len(SPLITS["test"]), help="held-out people (default: all)")
    parser.add_argument("--cases", type=int, default=2, help="scenes of each, up to 10 (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="folder to write (default: eval-set in the work directory)")
    args = parser.parse_args()
    if not (2 <= args.people <= len(SPLITS["test"]) and 1 <= args.cases <= 10):
        parser.error(f"there are 2 to {len(SPLITS['test'])} people and 1 to 10 cases")
    output = args.output or args.work_dir / "eval-set"
    write_eval_set(output, Renderer(), args.people, args.cases)
    print(f"{output}: {args.people} people, {args.cases} cases each")


if __name__ == "__main__":
    main()
