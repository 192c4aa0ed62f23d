"""Every training config in examples/training runs as it is shipped, but for base, data, steps and their samples."""

import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
import tiny_lora
import tiny_training
import torch
import yaml
from onnx_files import write_iresnet
from tiny_training import reset_accelerate

from facesnap_diffusers import Face
from facesnap_diffusers.data.people import divide_people
from facesnap_diffusers.settings import read_yaml
from facesnap_diffusers.training import trainer as trainer_module
from facesnap_diffusers.training.trainer import Trainer
from facesnap_diffusers.training.training_config import load_config


pytestmark = pytest.mark.slow


FOLDER = Path(__file__).parents[2] / "examples/training"
CONFIGS = sorted(FOLDER.glob("*.yaml"))
#: What stands for a number of steps in a config.
STEPS = {"steps": 2, "checkpoint_every": 1, "log_every": 1}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A base of each family, shards with a validation split, and a home with InsightFace's recognizer."""
    folder = tmp_path_factory.mktemp("world")
    for name, pipeline in (("sd", tiny.sd_pipeline()), ("sdxl", tiny.xl_pipeline())):
        # a latent for 8×8 pixels, as in Stable Diffusion: bfloat16 is slow on most CPUs
        pipeline.register_modules(vae=tiny.vae((32,) * 4))
        pipeline.save_pretrained(folder / name, variant="fp16")
        pipeline.save_pretrained(folder / name)
        tiny_lora.write_lora(pipeline, folder / f"{name}_lora", weight_name="sdxl_lightning_4step_lora.safetensors")
    tiny.image_encoder().save_pretrained(folder / "image_encoder")
    tiny_training.CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    ).save_pretrained(folder / "image_encoder")
    tiny_training.write_faces(
        folder / "faces", people=12, photos=2, face_encoder_id="insightface/w600k_r50", recognition_crop_size=112
    )
    divide_people(folder / "faces", same_person=0)
    recognizer = folder / "home/.insightface/models/buffalo_l/w600k_r50.onnx"
    recognizer.parent.mkdir(parents=True)
    write_iresnet(recognizer, size=112)
    return folder


def values(path, world, folder):
    """The config with what the tests have in place of the base, its encoders and the data."""
    config = read_yaml(path)
    family = config["base"].get("family", "sd")
    config["output_dir"] = str(folder / path.stem)
    config["base"]["model"] = str(world / family)
    if "vae" in config["base"]:
        config["base"]["vae"] = str(world / family / "vae")
    config["data"] |= {"shards": [str(world / "faces")], "validation": [str(world / "faces")], "resolution": 32}
    config["data"]["workers"] = 0
    if "aspect_ratio_buckets" in config["data"]:
        config["data"]["aspect_ratio_buckets"] = [[32, 32], [40, 24]]
    if "start_from" in config["adapter"]:
        config["adapter"]["start_from"] = str(folder / f"{path.stem[:-1]}1/adapter")
    else:
        config["adapter"] |= {
            "image_encoder_id": str(world / "image_encoder"), "bundle_image_encoder": True,
            "face_embed_dim": tiny.FACE_EMBED_DIM, "mixer": {"hidden_size": 32, "num_layers": 1, "attention_head_dim": 8},
        }  # fmt: skip
    config |= STEPS
    config["gradient_accumulation"] = min(config["gradient_accumulation"], 2)
    config["optimizer"]["warmup_steps"] = 1
    config["validation"] |= {"every": 2, "inference_steps": 1}
    config["identity_loss"] |= {"start_step": 0}
    if "lora" in config["identity_loss"]:
        config["identity_loss"] |= {"lora": str(world / f"{family}_lora"), "resolution": 24}
    return config


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory):
    """Runs a config once; the second stages start from the first ones' adapters."""
    folder, done = tmp_path_factory.mktemp("runs"), {}

    def run(path, monkeypatch):
        if path in done:
            return done[path]
        monkeypatch.setenv("HOME", str(world / "home"))
        try:
            import bitsandbytes  # noqa: F401
        except ImportError:  # its 8-bit states need a GPU; what a step does with them is not this test's matter
            module = type(sys)("bitsandbytes")
            module.optim = type(sys)("bitsandbytes.optim")
            module.optim.AdamW8bit = torch.optim.AdamW
            monkeypatch.setitem(sys.modules, "bitsandbytes", module)
            monkeypatch.setitem(sys.modules, "bitsandbytes.optim", module.optim)
        monkeypatch.setattr(trainer_module, "load_judge", lambda name: Judge())
        if path.stem.endswith("-2"):
            run(path.with_name(f"{path.stem[:-1]}1.yaml"), monkeypatch)
        config = folder / path.name
        config.write_text(yaml.safe_dump(values(path, world, folder)))
        reset_accelerate()
        trainer = Trainer(load_config(config))
        trainer.results = trainer.train()
        reset_accelerate()
        done[path] = trainer
        return trainer

    return run


class Judge:
    """Finds a face in every picture."""

    encoder, embedding_dim = "test/judge", 3

    def analyze(self, image):
        points = np.array(tiny.face_points()) * 0.3
        box = np.array([*points.min(axis=0), *points.max(axis=0)])
        return [Face(image, box, points, image.mean(axis=(0, 1)) + 1, 1.0, self.encoder)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_runs_as_shipped(path, runs, monkeypatch, caplog):
    trainer = runs(path, monkeypatch)
    shipped = read_yaml(path)
    assert trainer.progress.step == 2 and trainer.progress.skipped == 0
    folder = trainer.folder
    assert (folder / "adapter/README.md").is_file() and (folder / "best/mixer").is_dir()
    assert (folder / "validation/step-0000002.png").is_file() and any((folder / "logs").rglob("*tfevents*"))
    measured = trainer.results
    assert {"validation/face_distance", "validation/identity", "identity"} <= set(measured)
    assert ("contrastive" in measured) == ("contrastive" in shipped["identity_loss"])
    assert all(value == value for value in measured.values())
    assert "failed" not in caplog.text
    rank = shipped["adapter"].get("ffrnet_rank")
    if "start_from" not in shipped["adapter"]:
        assert trainer.pipeline.ffrnet.config.rank == rank
    assert load_config(path).data_statement is None  # no placeholder that a card would publish
