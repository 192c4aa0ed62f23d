"""Do drawn pictures show the person's hair, beard, glasses, eyes and skin, and the outline of the head?

    python check_pictures.py results/FaceSnap              # folders of pictures that `facesnap eval` made

The judge (`train_judge.py`) answers for each picture; the share of answers that are true of the person is printed (what looks
alike counts as one, `ALIKE`), and of those that it also gives for the true picture of that scene; of eyes only where the
scene has them open. The outline is that of head and hair above the chin: intersection over union of what the
judge sees and of what the renderer drew. Where `facesnap eval` has left scores, the share found first is printed by skin. The
true pictures are judged beside them.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from attributes import CLASSES, as_seen, class_numbers
from dataset import SEED
from eval_set import landmarks, scenes
from people.renderer import Renderer
from people.sampling import sample_person
from teach_image_encoder import CLOSED, EYES
from train_autoencoder import to_tensor
from train_judge import examine, load_judge, overlap
from wide_eval_set import ANGLES, turned_scenes
from workspace import add_work_dir, save_array

from facesnap_diffusers.evaluation.benchmarks.nano import nano
from facesnap_diffusers.evaluation.cases import Case


CHIN = 8  # of the landmarks
HALF = 128


def true_outlines(folder: Path, cases: list[Case]) -> tuple[np.ndarray, np.ndarray]:
    """Where the person is in the true pictures (N, 128, 128), and above which row the chin lies (N,); kept beside them."""
    paths = folder / "outlines.npy", folder / "chins.npy"
    if not all(path.exists() for path in paths):
        renderer = Renderer()
        axis = next((axis for axis in ANGLES if folder.name == f"eval-{axis}"), None)
        masks, chins = [], []
        for name, of_person in itertools.groupby(cases, lambda case: case.person):
            index = int(name)
            person, arguments = sample_person(SEED, index), (renderer.model, index, sample_person(SEED, index))
            found = turned_scenes(axis, *arguments, renderer.size) if axis else scenes(*arguments, renderer.size)
            next(found)
            for case, scene in zip(of_person, found):
                portrait = renderer.render(person, scene)
                if not np.array_equal(portrait.image, np.array(PIL.Image.open(case.ground_truth).convert("RGB"))):
                    raise SystemExit(
                        f"{case.ground_truth} is not what the renderer draws now; make the evaluation set again"
                    )
                masks.append(portrait.coverage >= HALF)
                chins.append(landmarks(renderer.model, person, scene, renderer.size)[CHIN, 1])
        for path, values in zip(paths, (masks, chins)):
            save_array(path, np.array(values))
    outlines, chins = (np.load(path) for path in paths)
    return outlines, chins


def above(masks: np.ndarray, chins: np.ndarray) -> np.ndarray:
    return masks & (np.arange(masks.shape[1])[None, :, None] < chins[:, None, None])


def found_first(folder: Path, skins: dict[str, str]) -> str:
    """The share found first of each skin tone, from the scores of `facesnap eval`."""
    path = folder / "scores.jsonl"
    if not path.exists():
        return ""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    shares = {}
    for tone in CLASSES["skin"]:
        values = [row["top1"] for row in rows if skins[row["person"]] == tone]
        shares[tone] = f"{tone} {np.mean(values):.1%} of {len(values)}" if values else f"{tone} none"
    return "; first by skin: " + ", ".join(shares.values())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("folders", type=Path, nargs="*", help="of pictures, named after their cases")
    parser.add_argument("--eval-set", type=Path, help="folder (default: eval-set in the work directory)")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    folder = args.eval_set or Path(args.work_dir) / "eval-set"
    cases, judge = list(nano(folder).cases), load_judge(args.work_dir)
    people = {case.person: sample_person(SEED, int(case.person)).attributes for case in cases}
    skins = {name: attributes["skin"] for name, attributes in people.items()}
    true = as_seen(np.stack([class_numbers(people[case.person]) for case in cases]))
    known = np.ones_like(true, bool)
    known[:, EYES] = [case.group != CLOSED for case in cases]
    outlines, chins = true_outlines(folder, cases)

    def described(found: np.ndarray, wanted: np.ndarray) -> str:
        shares = [(found == wanted)[known[:, k], k].mean() for k in range(len(CLASSES))]
        return ", ".join(f"{attribute} {share:.1%}" for attribute, share in zip(CLASSES, shares))

    seen = None  # in the true pictures
    sources = {"the true pictures": [case.ground_truth for case in cases]}
    sources |= {str(path): [path / f"{case.id}.png" for case in cases] for path in args.folders}
    for name, paths in sources.items():
        pictures = to_tensor(np.stack([np.array(PIL.Image.open(path).convert("RGB")) for path in paths]))
        found, masks = examine(judge, pictures)
        found = as_seen(found)
        seen = found if seen is None else seen
        outline = overlap(above(masks, chins), above(outlines, chins))
        print(
            f"{name}: {described(found, true)}; outline {outline.mean():.3f}{found_first(Path(name), skins)}\n"
            f"  as in the true picture: {described(found, seen)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
