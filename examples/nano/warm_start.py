"""Whether a warm start saves steps: an adapter of another kind, then FaceSnap from the recipe's start and from that adapter.

    export PYTHONPATH=$PWD
    python warm_start.py

The other kind is InstantID's: the face embedding alone through a resampler, and five points in place of 72. `points` is
trained from the base; `cold` begins with what start_adapter.py made, `warm` with `adapter.warm_start`. Each goes through
adapter.yaml and then through likeness.yaml, `warm` a third of the steps of each, and both once more with few steps of the first, at
constant learning rates, so that an adapter of fewer steps is what the run looked like there. `facesnap eval` compares them. Goes on
where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import yaml
from base_model import IMAGE_SIZE
from dataset import TO_PACKAGE, Shard, shard_paths
from embed_faces import embedding_path
from start_adapter import MIXER, NUM_TOKENS, wake_landmarks, whiten_face_projection
from workspace import add_work_dir

import facesnap_diffusers.nano.autoencoder  # noqa: F401  (diffusers looks its class up there)
from facesnap_diffusers import DlibFaceAnalyzer, FaceSnapConfig, FaceSnapPipeline
from facesnap_diffusers.faces.key_points import draw_key_points
from facesnap_diffusers.interop.mixers import InstantIDMixer
from facesnap_diffusers.models.ffrnet import FFRNet


HERE = Path(__file__).parent
FIRST, SECOND = HERE / "adapter.yaml", HERE / "likeness.yaml"
#: Steps of adapter.yaml, and those of likeness.yaml after which an adapter is kept.
STEPS = {
    "points": (1500, [400]),
    "cold": (1500, [200, 400, 600]),
    "warm": (500, [67, 134, 200]),
    "cold-short": (150, [67, 134, 200]),
    "warm-short": (150, [67, 134, 200, 550]),
}
#: What each begins with.
STARTS: dict[str, dict[str, Any]] = {
    "points": {"adapter.start_from": "adapters/start-points"},
    "cold": {"adapter.start_from": "adapters/start"},
    "warm": {
        "adapter.start_from": None,
        "adapter.warm_start": "adapters/points-400",
        "adapter.image_encoder_id": "clip/image_encoder",
        "adapter.bundle_image_encoder": True,
        "adapter.mixer": MIXER,
    },
}


def start_points(pipe: FaceSnapPipeline, embeddings: torch.Tensor, landmarks: torch.Tensor) -> None:
    """
    Puts a fresh adapter of InstantID's kind onto the base: for face embeddings like these `(..., dim)`, and faces where
    these landmarks are, `(faces, 72, 2)` in pixels.
    """
    config = FaceSnapConfig(
        face_encoder_id=DlibFaceAnalyzer.encoder,
        face_embed_dim=embeddings.shape[-1],
        image_encoder_id=None,
        normalized_embeds=False,
        landmark_style="instantid5",
        num_tokens=NUM_TOKENS,
        license="apache-2.0",
    )
    pipe.init_facesnap_adapter(config, mixer=MIXER)
    pipe.mixer = InstantIDMixer(
        pipe.unet.config.cross_attention_dim, embeddings.shape[-1], NUM_TOKENS, hidden_size=128, num_heads=2
    )
    whiten_face_projection(SimpleNamespace(face_proj=pipe.mixer.projection.proj_in), embeddings)
    pipe.ffrnet = FFRNet.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 16, 32, 64))
    wake_landmarks(pipe.ffrnet, draw_key_points(landmarks, IMAGE_SIZE, IMAGE_SIZE))


def run(work_dir: Path, *arguments: Any) -> None:
    """`facesnap` in the work directory."""
    command = [sys.executable, "-m", "facesnap_diffusers", *map(str, arguments)]
    print(" ".join(command[2:]), flush=True)
    subprocess.run(command, cwd=work_dir, check=True)


def train(work_dir: Path, recipe: Path, output: str, steps: int, settings: dict[str, Any]) -> None:
    """Trains up to a step, or on to it."""
    settings = {"output_dir": output, "steps": steps, "optimizer.lr_scheduler": "constant_with_warmup", **settings}
    run(work_dir, "train", recipe, *(f"--set={name}={json.dumps(value)}" for name, value in settings.items()))


def compare(work_dir: Path, name: str, adapters: dict[str, str]) -> None:
    """`facesnap eval` by eval.yaml of these adapters in place of its own, by what to call them: `results-NAME`."""
    methods = [{"kind": "facesnap", "name": label, "adapter": adapter} for label, adapter in adapters.items()]
    evaluation = yaml.safe_load((HERE / "eval.yaml").read_text())
    recipe = work_dir / f"eval-{name}.yaml"
    recipe.write_text(yaml.safe_dump({**evaluation, "output": f"results-{name}", "methods": methods}))
    run(work_dir, "eval", recipe.name)


def parse_settings(items: list[str]) -> dict[str, Any]:
    """Of `--set NAME=VALUE`, as `facesnap train` reads them."""
    return {name: yaml.safe_load(value) for name, value in (item.split("=", 1) for item in items)}


def train_adapters(work_dir: Path, name: str, common: dict[str, Any]) -> None:
    """Trains one of `STEPS` through both recipes, and keeps its adapters as `adapters/NAME-STEPS`."""
    first, seconds = STEPS[name]
    start = STARTS[name.removesuffix("-short")]
    train(work_dir, FIRST, f"adapters/{name}-first", first, {**start, **common})
    for steps in seconds:
        kept = work_dir / f"adapters/{name}-{steps}"
        if not kept.exists():
            settings = {"adapter.start_from": f"adapters/{name}-first/adapter", **common}
            train(work_dir, SECOND, f"adapters/{name}-second", steps, settings)
            shutil.copytree(work_dir / f"adapters/{name}-second/adapter", kept)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_work_dir(parser)
    parser.add_argument(
        "--only", action="append", choices=list(STEPS), help="train only this; may be given several times"
    )
    parser.add_argument("--set", action="append", default=[], help="for all runs, as in facesnap train")
    args = parser.parse_args()
    work_dir = Path(args.work_dir)
    common = parse_settings(args.set)

    if not (work_dir / "adapters/start-points").exists():
        torch.manual_seed(0)
        paths = [path for path in shard_paths(work_dir, "train") if embedding_path(work_dir, path).exists()]
        embeddings = np.concatenate([np.load(embedding_path(work_dir, path)) for path in paths])
        landmarks = Shard.load(paths[0]).landmarks[:, 0] + TO_PACKAGE
        pipe = FaceSnapPipeline.from_pretrained(work_dir / "export", dtype=torch.float32)
        start_points(pipe, torch.from_numpy(embeddings), torch.from_numpy(landmarks))
        pipe.save_facesnap_adapter(work_dir / "adapters/start-points")
    for name in args.only or STEPS:
        train_adapters(work_dir, name, common)
    if args.only:
        return
    adapters = {
        f"{name}, {first} + {steps} steps": f"adapters/{name}-{steps}"
        for name, (first, seconds) in STEPS.items()
        for steps in seconds
    }
    compare(work_dir, "warm-start", adapters)


if __name__ == "__main__":
    main()
