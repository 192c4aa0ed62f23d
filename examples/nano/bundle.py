"""Puts the nano model into the package: the exported base, an adapter, and people to try them on.

    python export.py && python bundle.py ~/.cache/facesnap-nano/adapters/facesnap/adapter

The people are held out from training, chosen so that they differ, rendered, and encoded with the adapter's encoders and
their own landmarks, so that `facesnap demo` needs no face recognizer. Writes all or nothing.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import torch
from dataset import SEED, SPLITS
from eval_set import landmarks, scenes
from people.renderer import Renderer
from people.sampling import sample_person
from workspace import add_work_dir

from facesnap_diffusers import FaceSnapConfig, FaceSnapPipeline, load_nano_pipeline
from facesnap_diffusers.files import atomic_folder
from facesnap_diffusers.nano.model import SHIPPED_NANO


LIMIT_MB = 40
VARIED = ("skin", "hair_style", "hair_color", "eyes", "beard", "glasses")
_CARD = """---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
tags: [facesnap, synthetic-people]
---

# Nano

A whole FaceSnap in a few megabytes: a Stable Diffusion of synthetic people at 128×128 pixels (`base/`, half precision), a
FaceSnap adapter trained on top of it, frozen (`adapter/`), and people to try it with (`people/`). `facesnap demo` shows it.

```py
from facesnap_diffusers import load_nano_pipeline, nano_people

pipe = load_nano_pipeline()
person = nano_people()[0]
prompt = "a photo of a person, laughing, facing forward, blue shirt, pink background"
image = pipe(prompt, identity=person.identity, num_inference_steps=4, guidance_scale=1.0).images[0]
```

## Training data

Pictures rendered from random faces of the ICT FaceKit Light morphable model (USC ICT, MIT license), by `examples/nano` in the
repository. No photo of anybody went into base, adapter or image encoder. The adapter's face embeddings are those of dlib's
recognizer, which was trained on photos. The people in `people/` are rendered too, and were held out from training.

## Photos

The model has seen rendered people only. `photo_shift.safetensors` holds the difference of the means of rendered people and of
photo-like faces (180 faces of people who do not exist, from SFHQ by David Beniaguev, MIT license) in the adapter's features;
`facesnap_diffusers.nano.photos.as_rendered` adds it, and `facesnap demo --face` does so by itself. The avatar of a photo is a
rendered person of about the same skin, hair color and features. It shows hair as one of eight styles, often shorter than it
is, no age, and nothing of what the renderer does not know.

## Intended use and limits

To see how the method works, to test software that uses it, and to compare methods under equal conditions. It draws rendered
people, understands the words of its captions only (hair, skin, eyes, beard, glasses, expression, direction, shirt and background
colors), and is not a measure of what an adapter for a full-size model can do.
"""


def varied_people(count: int) -> list[int]:
    """Held-out people: each is the first of those who bring most that the ones before lack."""
    attributes = {index: sample_person(SEED, index).attributes for index in SPLITS["test"]}
    chosen: list[int] = []
    for _ in range(count):
        seen = {(name, attributes[index][name]) for index in chosen for name in VARIED}
        rest = [index for index in attributes if index not in chosen]
        chosen.append(max(rest, key=lambda index: sum((n, attributes[index][n]) not in seen for n in VARIED)))
    return chosen


def bundle(base: Path, adapter: Path, people: list[int], renderer: Renderer, output: Path) -> dict[str, float]:
    """Writes the model's folder; returns the size of its parts in MB."""
    if output.exists() and not (output / "base/model_index.json").is_file():
        raise SystemExit(f"{output} exists and is not a nano model: nothing is written")
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_folder(output) as folder:
        shutil.copytree(base, folder / "base")
        _copy_adapter(adapter, folder)
        _forget_paths(folder)
        _write_people(people, renderer, folder)
        (folder / "README.md").write_text(_CARD)
        sizes = {part.name: _megabytes(part) for part in sorted(folder.iterdir())}
        if sum(sizes.values()) > LIMIT_MB:
            raise SystemExit(f"{sizes}, in MB, is more than {LIMIT_MB} in all: nothing is written")
    return sizes


def _copy_adapter(adapter: Path, folder: Path) -> None:
    """The adapter in half precision, without a landmark predictor: that of the package serves."""
    parts = [part for part in FaceSnapConfig.load(adapter).parts if part != "landmark_predictor"]
    pipe = FaceSnapPipeline.from_pretrained(folder / "base", dtype=torch.float16)
    pipe.load_facesnap_adapter(adapter, parts=parts)
    pipe.save_facesnap_adapter(folder / "adapter")
    (folder / "adapter/README.md").unlink()
    FaceSnapConfig.load(folder / "adapter").replace(base_model=None).save(folder / "adapter")


def _forget_paths(folder: Path) -> None:
    """Takes out where the parts lay on the machine that made them."""
    for path in folder.rglob("*.json"):
        values = json.loads(path.read_text())
        if values.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(values, indent=2) + "\n")


def _write_people(people: list[int], renderer: Renderer, folder: Path) -> None:
    """A reference picture of each, and what the bundled adapter's encoders make of it."""
    pipe = load_nano_pipeline(folder)
    (folder / "people").mkdir()
    for index in people:
        person = sample_person(SEED, index)
        scene = next(scenes(renderer.model, index, person, renderer.size))
        picture = renderer.render(person, scene).image
        path = folder / "people" / f"person-{index:02d}.png"
        PIL.Image.fromarray(picture).save(path, optimize=True)
        detected = pipe.encode_face(picture)
        # dlib, made for photos, reads rendered faces too badly to tell their proportions: here they are known
        points = landmarks(renderer.model, person, scene, renderer.size).astype(np.float32)
        identity = pipe.encode_face(picture, embedding=detected.face_embeds, landmarks=points)
        identity.save(path.with_suffix(".safetensors"))


def _megabytes(path: Path) -> float:
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file()) / 1e6


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument("adapter", type=Path, help="folder of the trained adapter")
    parser.add_argument("--base", type=Path, help="folder of the base (default: export in the work directory)")
    parser.add_argument("--people", type=int, default=6, help="how many people come with it (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=SHIPPED_NANO, help="folder to write (default: the package's)")
    args = parser.parse_args()
    base = args.base or Path(args.work_dir) / "export"
    sizes = bundle(base, args.adapter, varied_people(args.people), Renderer(), args.output)
    for name, size in {**sizes, "all": sum(sizes.values())}.items():
        print(f"{name:10} {size:6.2f} MB")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    main()
