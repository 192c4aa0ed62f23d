"""What a nano model makes of photos: its avatars of people who do not exist, judged by labels and by dlib.

    pip install openpeople
    python check_photos.py ../../src/facesnap_diffusers/assets/nano --faces path/to/sfhq_faces --sheet photos.png

`openpeople` brings a portrait and a selfie of each of ten people; `--faces` names a folder of the pictures of SFHQ (David
Beniaguev, MIT, github.com/SelfishGene/SFHQ-dataset) that `photo_labels.csv` speaks of. An avatar looks ahead, neutral, before gray.
The judge (`train_judge.py`) reads its glasses, hair length and hair color; several labels are right where a photo leaves it open.
"""

from __future__ import annotations

import argparse
import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import openpeople
import PIL.Image
import torch
from attributes import CLASSES
from train_autoencoder import to_tensor
from train_judge import examine, load_judge
from workspace import add_work_dir

from facesnap_diffusers import DlibFaceAnalyzer, Expression, HeadPose, load_nano_pipeline
from facesnap_diffusers.faces.alignment import align_for_clip
from facesnap_diffusers.nano.photos import as_rendered
from facesnap_diffusers.nano.portrait_box import portrait_box


LABELS = Path(__file__).parent / "photo_labels.csv"
PORTRAIT, SELFIE = "studio_portrait", "amateur_selfie"
LARGEST = 800  # pixels of a photo's longer side: dlib's detector takes its time
PROMPT = "a photo of a person, neutral, facing forward, gray shirt, gray background"
NAMES = list(CLASSES)


@dataclass
class Photo:
    name: str
    labels: dict[str, str]
    head: np.ndarray
    embedding: np.ndarray
    avatar: np.ndarray
    avatar_embedding: np.ndarray | None


def photo_path(name: str, faces: Path | None) -> Path | None:
    if "/" in name:
        return Path(openpeople.__file__).parent / f"data/curated/{name.replace('/', '/assets/')}.jpg"
    return None if faces is None else faces / name


def largest(faces: list):
    return max(faces, key=lambda face: np.prod(np.subtract(face.box[2:], face.box[:2])))


def look_at(
    pipe, analyzer: DlibFaceAnalyzer, path: Path, name: str, labels: dict[str, str], model: Path | None
) -> Photo | None:
    """The photo with its avatar, its features moved by the statistics of a model; None where dlib finds no face."""
    picture = PIL.Image.open(path).convert("RGB")
    picture.thumbnail((LARGEST, LARGEST))
    image = np.array(picture)
    faces = analyzer.analyze(image)
    if not faces:
        return None
    face = largest(faces)
    identity = pipe.encode_face(image, embedding=face.embedding, landmarks=face.landmarks)
    if model is not None:
        identity = as_rendered(identity, model)
    drawn = pipe(
        PROMPT,
        identity=identity,
        pose=HeadPose(),
        face_box=portrait_box(HeadPose()),
        expression=Expression({}),
        num_inference_steps=4,
        guidance_scale=1.0,
        generator=torch.Generator().manual_seed(0),
    ).images[0]
    avatar = np.array(drawn)
    found = analyzer.analyze(avatar)
    return Photo(
        name=name,
        labels=labels,
        head=np.array(align_for_clip(image, face.landmarks, avatar.shape[0])),
        embedding=np.asarray(face.embedding),
        avatar=avatar,
        avatar_embedding=np.asarray(largest(found).embedding) if found else None,
    )


def report_labels(group: str, photos: list[Photo], answers: np.ndarray):
    def answer(number: int, name: str):
        return CLASSES[name][answers[number, NAMES.index(name)]]

    without = [answer(n, "glasses") for n, photo in enumerate(photos) if photo.labels["glasses"] == "0"]
    lengths = [answer(n, "hair length") in photo.labels["hair_length"].split("|") for n, photo in enumerate(photos)]
    colors = [
        answer(n, "hair color") in photo.labels["hair_color"].split("|")
        for n, photo in enumerate(photos)
        if photo.labels["hair_color"]
    ]
    long = [
        answer(n, "hair length") in ("long", "chin")
        for n, photo in enumerate(photos)
        if photo.labels["hair_length"] == "long"
    ]
    print(
        f"{group}, {len(photos)} photos: glasses where there are none {np.mean(without):.1%}; hair length {np.mean(lengths):.1%}"
        f" (long hair at least to the chin {np.mean(long):.1%}), color {np.mean(colors):.1%}",
        flush=True,
    )


def first_of(sources: list[np.ndarray | None], gallery: list[np.ndarray | None]) -> float:
    """How often the source's own place in the gallery is the nearest to it; what shows no face is not found."""
    hits = []
    for number, source in enumerate(sources):
        distances = [
            np.inf if source is None or other is None else np.linalg.norm(source - other) for other in gallery
        ]
        hits.append(np.isfinite(distances[number]) and np.argmin(distances) == number)
    return float(np.mean(hits))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("model", type=Path, help="folder of a nano model, as bundle.py writes it")
    parser.add_argument("--adapter", type=Path, help="another adapter than the model's")
    parser.add_argument("--faces", type=Path, help="folder of SFHQ's pictures")
    parser.add_argument("--sheet", type=Path, help="picture to write: photos with their avatars")
    parser.add_argument("--as-it-is", action="store_true", help="without the model's statistics of photos")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    pipe = load_nano_pipeline(args.model)
    if args.adapter is not None:
        pipe.unload_facesnap_adapter()
        pipe.load_facesnap_adapter(args.adapter)
    pipe.set_progress_bar_config(disable=True)
    analyzer, judge = DlibFaceAnalyzer(), load_judge(args.work_dir)
    with open(LABELS, newline="") as file:
        rows = list(csv.DictReader(file))
    photos, missed = [], []
    for row in rows:
        path = photo_path(row["file"], args.faces)
        if path is not None:
            photo = look_at(pipe, analyzer, path, row["file"], row, None if args.as_it_is else args.model)
            photos.append(photo) if photo is not None else missed.append(row["file"])
    print(f"no face found in {missed}" if missed else "a face found in every photo", flush=True)
    answers, _ = examine(judge, to_tensor(np.stack([photo.avatar for photo in photos])))
    synthetic = np.array(["/" not in photo.name for photo in photos])
    for group, chosen in (("openpeople", ~synthetic), ("SFHQ", synthetic)):
        if chosen.any():
            report_labels(group, [photo for photo, yes in zip(photos, chosen) if yes], answers[chosen])

    by_name = {photo.name: photo for photo in photos}
    people = sorted({photo.name.split("/")[0] for photo in photos if "/" in photo.name})
    pairs = [(by_name.get(f"{name}/{PORTRAIT}"), by_name.get(f"{name}/{SELFIE}")) for name in people]
    pairs = [(portrait, selfie) for portrait, selfie in pairs if portrait and selfie]
    portraits = [portrait.avatar_embedding for portrait, _ in pairs]
    selfies = [selfie.avatar_embedding for _, selfie in pairs]
    print(f"avatar of the portrait finds that of the selfie among {len(pairs)}: {first_of(portraits, selfies):.1%}")
    print(f"avatar finds its own photo: {first_of(portraits, [portrait.embedding for portrait, _ in pairs]):.1%}")

    if args.sheet:
        cells = [np.concatenate([photo.head, photo.avatar], 0) for photo in photos]
        cells += [np.zeros_like(cells[0])] * (-len(cells) % 16)
        lines = [np.concatenate(cells[k : k + 16], 1) for k in range(0, len(cells), 16)]
        PIL.Image.fromarray(np.concatenate(lines, 0)).save(args.sheet)


if __name__ == "__main__":
    main()
