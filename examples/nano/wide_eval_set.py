"""Evaluation sets like that of `eval_set.py`, of heads turned further than training pictures: one for each axis.

    python wide_eval_set.py                # eval-pitch, eval-roll and eval-yaw in the work directory, 100 pictures each
    facesnap eval eval.yaml --data eval-yaw --output results-yaw

Pitch and roll of 25 degrees and a yaw of 60, to one side for every other person, in scenes that are else as those of the
evaluation set, with the other two angles left at what they were but at most 10 degrees.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
from dataset import SEED
from eval_set import face_box, is_other, scenes, write_eval_set
from people.face_model import FaceModel
from people.renderer import Renderer
from people.sampling import Person, Scene, sample_scene
from workspace import add_work_dir


ANGLES = {"pitch": 25.0, "roll": 25.0, "yaw": 60.0}
OTHERS = 10.0
CENTER = 0.5, 0.58  # of the face in the picture


def turned_scenes(axis: str, model: FaceModel, index: int, person: Person, size: int) -> Iterator[Scene]:
    """As `eval_set.scenes`, turned about one axis; the picture follows a head that leaves its middle."""
    reference = next(scenes(model, index, person, size))
    yield reference
    side = 1 if index % 2 else -1
    for view in itertools.count():
        scene = sample_scene(SEED, index, view, model.expression_index)
        if not is_other(model, reference, scene):
            continue
        angles = {name: float(np.clip(getattr(scene, name), -OTHERS, OTHERS)) for name in ANGLES}
        turned = replace(scene, **{**angles, axis: side * ANGLES[axis]})
        box = face_box(model, person, turned, size)
        # a head that is turned about the neck leaves its place: the camera moves along
        shift = np.array([(box[0] + box[2]) / 2 - CENTER[0], CENTER[1] - (box[1] + box[3]) / 2, 0])
        center = turned.camera + 2 * turned.camera[2] * shift
        turned = replace(turned, camera=center)
        box = face_box(model, person, turned, size)
        if box.min() >= 0 and box.max() <= 1:
            yield turned


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--people", type=int, default=100)
    args = parser.parse_args()
    renderer = Renderer()
    for axis in ANGLES:
        folder = Path(args.work_dir) / f"eval-{axis}"
        make: Callable[..., Iterator[Scene]] = partial(turned_scenes, axis)
        write_eval_set(folder, renderer, args.people, 1, make)
        print(f"{folder}: {args.people} people", flush=True)


if __name__ == "__main__":
    main()
