"""Renders the data set.

Run again to continue where it stopped.

python render.py --split test && python render.py --split validation && python render.py --split train --workers 2
python render.py --sheet people.png        # only a look
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
from pathlib import Path

import cv2
import numpy as np
from dataset import SEED, SPLITS, TURNED, VIEWS, Shard, planned_shards
from people.renderer import Renderer
from people.sampling import Scene, sample_person, sample_scene
from people.turning import turned_further
from workspace import add_work_dir


def scene_of(person: int, view: int, expression_index: dict[str, int]) -> Scene:
    """What a view of a person of any split shows."""
    scene = sample_scene(SEED, person, view, expression_index)
    if person in TURNED and view % 2 == 0:
        return turned_further(scene, np.random.default_rng((SEED, 4, person, view)))
    return scene


def render_shard(renderer: Renderer, people: range, views: int = VIEWS) -> Shard:
    index = renderer.model.expression_index
    rows = []
    for i in people:
        person = sample_person(SEED, i)
        scenes = [scene_of(i, j, index) for j in range(views)]
        rows.append((person, scenes, [renderer.render(person, scene) for scene in scenes]))

    def stack(value):
        return np.array([[value(scene, portrait) for scene, portrait in zip(s, p)] for _, s, p in rows])

    return Shard(
        people=np.array(people),
        images=stack(lambda s, p: p.image),
        landmarks=stack(lambda s, p: p.landmarks),
        landmarks_3d=stack(lambda s, p: p.landmarks_3d),
        shape=np.array([person.shape for person, _, _ in rows]),
        expression=stack(lambda s, p: s.expression),
        pose=stack(lambda s, p: np.float32([s.yaw, s.pitch, s.roll])),
        camera=stack(lambda s, p: s.camera.astype(np.float32)),
        attributes=[[person.attributes | scene.attributes for scene in scenes] for person, scenes, _ in rows],
    )


def work(shards: list[tuple[Path, range]], worker: int, workers: int):
    renderer = Renderer()
    for path, people in shards[worker::workers]:
        if path.exists():
            continue
        start = time.time()
        shard = render_shard(renderer, people)
        shard.save(path)
        print(f"{path.name}: {shard.images.shape[0] * VIEWS / (time.time() - start):.1f} images/s", flush=True)


def contact_sheet(people: range, views: int) -> np.ndarray:
    shard = render_shard(Renderer(), people, views)
    rows = [
        np.concatenate(list(shard.images[k : k + 2].reshape(-1, *shard.images.shape[2:])), 1)
        for k in range(0, len(people), 2)
    ]
    return np.concatenate(rows, 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("--split", choices=list(SPLITS), default="train")
    parser.add_argument("--people", type=int, nargs=2, metavar=("FIRST", "LAST"), help="only these of the split")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--sheet", type=Path, help="write a contact sheet of the split's first people and stop")
    args = parser.parse_args()
    split = SPLITS[args.split]
    first, last = args.people or (split.start, split.stop - 1)
    if args.sheet:
        cv2.imwrite(str(args.sheet), contact_sheet(range(first, first + 16), 4)[..., ::-1])
        return
    shards = [
        (path, people) for path, people in planned_shards(args.work_dir, args.split) if first <= people[0] <= last
    ]
    # spawned, not forked: a GL context does not survive a fork
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(shards, k, args.workers)) for k in range(args.workers)]
    for process in workers:
        process.start()
    for process in workers:
        process.join()
    raise SystemExit(any(process.exitcode for process in workers))


if __name__ == "__main__":
    main()
