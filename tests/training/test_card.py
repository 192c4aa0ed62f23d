"""What the trainer says of a run in a model card."""

import dataclasses
import types
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
import tiny
import tiny_training

from facesnap_diffusers.training.card import RunSummary, describe_training
from facesnap_diffusers.training.training_config import TrainingConfig


#: Settings of text that name no file or folder.
NAMES = {
    "revision", "variant", "face_encoder_id", "license", "caption", "judge", "prompt", "data_statement", "repo_id", "extra"
}  # fmt: skip
SECRET = "janes-own-disk"


def card(config):
    run = RunSummary(
        step=7, skipped=0, photos=12, people=4, processes=1, device="CPU", hours=0.5, sampler="EulerDiscreteScheduler"
    )
    return describe_training(config, tiny.adapter_config(), run)


def with_paths(settings, folder):
    """The settings with a path for each text that could be one; a path with `~` and a colon besides."""
    found = []
    for name, hint in get_type_hints(type(settings)).items():
        value, kinds = getattr(settings, name), get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        if dataclasses.is_dataclass(value):
            found += with_paths(value, folder)
        elif str in kinds and name not in NAMES:
            setattr(settings, name, f"{folder}/{name}")
            found.append(name)
    return found


@pytest.mark.parametrize("left_out", ["start_from", "warm_start"])
@pytest.mark.parametrize("root", ["", "~", "/mnt/c: drive"])
def test_no_local_path(tmp_path, left_out, root):
    folder = f"{root or tmp_path}/{SECRET}"
    config = tiny_training.config(Path("base"), "faces", "out")
    found = with_paths(config, folder)
    expected = {
        "output_dir", "model", "vae", "start_from", "warm_start", "warm_start_file", "image_encoder_id", "network", "center",
        "lora", "lora_file",
    }  # fmt: skip
    assert expected <= set(found)
    setattr(config.adapter, left_out, None)
    config.data.shards, config.data.validation = [f"{folder}/shards"], [f"{folder}/validation"]
    config.identity_loss.mode, config.loss.extra = "few_step", "mine.losses:extra"
    text = card(config)
    assert SECRET not in text and "vae: vae" in text and "- shards" in text and "mine.losses:extra" in text


def test_what_is_no_path_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "insightface/w600k_r50").mkdir(parents=True)
    config = tiny_training.config(
        Path("owner/base"), "s3://bucket/faces/1", "out", adapter={"face_encoder_id": "insightface/w600k_r50"},
        validation={"prompt": "a / b / c"},
    )  # fmt: skip
    text = card(config)
    for kept in (
        "model: owner/base",
        "- s3://bucket/faces/1",
        "face_encoder_id: insightface/w600k_r50",
        "prompt: a / b / c",
    ):
        assert kept in text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("file:///disks/jane/faces", "faces"),
        ("https://jane:token@host.org/faces?key=1#2", "https://host.org/faces"),
        (r"C:\Users\jane\faces", "faces"),
        ("s3://bucket/faces/1", "s3://bucket/faces/1"),
    ],
)
def test_addresses(name, shown):
    config = tiny_training.config(Path("owner/base"), "faces", "out")
    config.data.shards = [name]
    text = card(config)
    assert f"- {shown}\n" in text and "jane" not in text and "key=1" not in text


@pytest.mark.slow
def test_a_local_image_encoder(base, faces, tmp_path):
    """The whole card of a run, where the image encoder is in a folder of the base's."""
    changes = {"adapter": {"bundle_image_encoder": False}, "validation": {"batches": 0, "images": 0}}
    tiny_training.train(tiny_training.config(base, faces, tmp_path, steps=1, **changes))
    text = (tmp_path / "adapter/README.md").read_text()
    assert "image_encoder_id: face_encoder" in text and "| steps | 1 |" in text
    assert str(base) not in text and str(faces) not in text and str(tmp_path.parent) not in text


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        (
            {},
            "λ = 0.5 by tiny_training:TinyRecognizer on one-step predictions with a signal-to-noise ratio of at least 0.3,"
            " against the reference's stored embedding",
        ),
        ({"identity_loss": {"weight": 0.0}}, "none"),
        (
            {
                "identity_loss": {
                    "mode": "few_step", "reference": "target", "contrastive": 0.1, "lora": "owner/lora", "resolution": 16,
                    "prompt": "portrait",
                },
                "loss": {"align_semantic": 0.6, "align_layout": 0.1},
            },
            "λ = 0.5 by tiny_training:TinyRecognizer on samples of 16 px to the prompt “portrait” in 4 steps with owner/lora,"
            " 1 of them with a gradient, at every 4 steps, against the target photo; contrastive, weight 0.1, with 1,024 people"
            " and temperature 0.1; alignment: semantic 0.6, layout 0.1, at every 4 steps",
        ),
    ],
)  # fmt: skip
def test_rows(changes, row):
    config = tiny_training.config(Path("owner/base"), "faces", "out", **changes)
    assert isinstance(config, TrainingConfig)
    text = card(config)
    assert f"| identity loss | {row} |" in text
    assert "| validation pictures | EulerDiscreteScheduler, 2 steps," in text
