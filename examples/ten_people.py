"""Ten people on a laptop: from photos to a repo for the Hub, in minutes on two cores.

    pip install "facesnap-diffusers[train,eval]" openpeople
    python ten_people.py

Nano's adapter is taught further, with an identity loss. Writes into the current folder: photos, shards, the trained adapter
with its card, and a table of likeness before and after.
The people do not exist (openpeople, MIT). Each has two photos, so that one can be the reference of the other.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

import openpeople
import PIL.Image

from facesnap_diffusers import load_nano_pipeline


PEOPLE = Path(openpeople.__file__).parent / "data/curated"
ENCODER = "dlib/face_recognition_resnet_model_v1"
CONFIG = """\
output_dir: run
base:
  model: nano
data:
  shards: [shards]
  resolution: 128
  workers: 0
data_statement: Photos of ten people who do not exist (openpeople, MIT).

steps: 120
batch_size: 4

adapter:
  start_from: nano
  license: apache-2.0

optimizer:
  learning_rate: 1.0e-4
  warmup_steps: 10
  lr_scheduler: cosine
ema_decay: 0.9

identity_loss:
  weight: 0.3
  mode: few_step
  reference: target
  every: 1
  steps: 4
  gradient_steps: 4
  recognizer:
    network: facesnap_diffusers.training.dlib_network:load_dlib_network
    crop: dlib

validation: {every: 1000, batches: 0, images: 0}
checkpoint_every: 60
log_every: 10
"""


def write_photos(people: int) -> None:
    """A folder for each person in `photos`, and heads as large as those that nano knows in `references`."""
    Path("references").mkdir(exist_ok=True)
    for number in range(1, people + 1):
        name = f"P{number:03d}"
        folder = Path("photos") / name
        folder.mkdir(parents=True, exist_ok=True)
        for kind in ("studio_portrait", "amateur_selfie"):
            photo = PIL.Image.open(PEOPLE / name / "assets" / f"{kind}.jpg").convert("RGB")
            photo.thumbnail((512, 512))
            photo.save(folder / f"{kind}.jpg", quality=95)
            (folder / f"{kind}.txt").write_text("a photo of a person")
        portrait = PIL.Image.open(folder / "studio_portrait.jpg")
        width, height = portrait.size
        head = portrait.crop((0.19 * width, 0.12 * height, 0.81 * width, 0.74 * height))
        head.resize((512, 512)).save(f"references/{name}.jpg")


def facesnap(*arguments: str) -> None:
    """A command of the package, with the seconds that it takes."""
    print("facesnap", *arguments, flush=True)
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "facesnap_diffusers", *arguments], check=True)
    print(f"{arguments[0]}: {time.perf_counter() - start:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=10)
    parser.add_argument("--steps", type=int, default=120)
    args = parser.parse_args()
    start = time.perf_counter()

    write_photos(args.people)
    # nano's encoder, small pictures, few people: for SD 1.5 none of these options is needed
    recognizer = ["--face-encoder-id", ENCODER, "--raw-embeds", "--recognition-crop", "dlib"]
    facesnap("prepare", "photos", "shards", *recognizer, "--resolution=128", "--min-face=20", "--validation=0")
    Path("train.yaml").write_text(CONFIG)
    facesnap("train", "train.yaml", f"--set=steps={args.steps}")
    compared = ["text", "facesnap:name=before,adapter=nano", "facesnap:name=after,adapter=run/adapter"]
    sampling = ["--base=nano", "--size=128", "--steps=4", "--guidance-scale=1", "--batch-size=4"]
    judges = [f"--face-encoder-id={ENCODER}", "--clip-model-id=none", f"--limit={2 * args.people}"]
    methods = [f"--method={method}" for method in compared]
    facesnap("eval", "--benchmark=unsplash50", "--data=references", "--output=results", *sampling, *judges, *methods)
    card = ["--results=results", "--method=after", "--license=apache-2.0"]
    facesnap("package-hub-repo", "run/adapter", "--repo-id=someone/ten-people", *card)

    pipe = load_nano_pipeline()
    pipe.load_facesnap_adapter("run/adapter")
    person = pipe.encode_face("photos/P001/studio_portrait.jpg")
    call = {"face_box": (0.2, 0.34, 0.8, 0.9), "num_inference_steps": 4, "guidance_scale": 1.0}
    pipe("a photo of a person, blue background", identity=person, **call).images[0].save("P001.png")
    print(f"all: {(time.perf_counter() - start) / 60:.1f} minutes; see results/results.md and run/adapter/README.md")


if __name__ == "__main__":
    main()
