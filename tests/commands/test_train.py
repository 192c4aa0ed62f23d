"""`facesnap train`, from a file to the Hub."""

import pytest
import tiny
import tiny_training
import yaml
from safetensors.torch import load_file
from tiny_training import assert_same, reset_accelerate
from typer.testing import CliRunner

from facesnap_diffusers import FaceSnapPipeline
from facesnap_diffusers.cli import app
from facesnap_diffusers.settings import parse_settings
from facesnap_diffusers.training.training_config import TrainingConfig


pytestmark = pytest.mark.slow


def test_command_publishes_the_adapter(base, faces, hub, tmp_path, monkeypatch):
    """From a file to the Hub, with a model card that says what the adapter is, and from there into a pipeline."""
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    config = tiny_training.config(base, faces, tmp_path / "run", steps=2, data={"validation": [str(faces)]})
    config.hub.repo_id, config.data_statement = "someone/faces", "Coloured shapes, of nobody."
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    reset_accelerate()
    result = CliRunner().invoke(app, ["train", str(tmp_path / "config.yaml"), "--set", "hub.push=true"])
    assert result.exit_code == 0, result.exception

    files = hub.files("someone/faces", hub.resolve("someone/faces", "main"))
    card = files["README.md"].decode()
    for text in (
        "Coloured shapes, of nobody.", "| data | 12 photos of 4 people |", "| steps | 2 |", "| samples | 4 |",
        "| hardware | 1 × CPU, 0.0 hours |", "| validation/identity |", f"| face encoder | {tiny.FACE_ENCODER} |",
    ):  # fmt: skip
        assert text in card
    # nothing of the machine that it ran on, nothing of a recognizer that the adapter does not have
    assert str(tmp_path.parent) not in card and str(base) not in card and "insightface" not in card
    # the config in the card is the run's
    assert (
        parse_settings(TrainingConfig, yaml.safe_load(card.split("```yaml\n")[1].split("```")[0]), "card").steps == 2
    )
    pipe = FaceSnapPipeline.from_pretrained(base, safety_checker=None)
    pipe.load_facesnap_adapter("someone/faces", cache_dir=str(tmp_path / "cache"))
    saved = load_file(tmp_path / "run/adapter/mixer/diffusion_pytorch_model.safetensors")
    assert_same(saved, dict(pipe.mixer.state_dict()))
