"""Training configs: files, overrides, errors."""

from pathlib import Path

import pytest
import tiny_training
import yaml

from facesnap_diffusers.errors import InputError
from facesnap_diffusers.settings import parse_settings
from facesnap_diffusers.training.training_config import TrainingConfig, load_config


class TestConfig:
    @pytest.fixture
    def values(self, tmp_path):
        config = tiny_training.config(tmp_path / "base", tmp_path / "faces", tmp_path / "output")
        return yaml.safe_load(config.to_yaml())

    def test_file_and_overrides(self, values, tmp_path):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        config = load_config(path, ["optimizer.learning_rate=1e-5", "data.zoom=[1, 2]", "identity_loss.weight=0"])
        assert config.optimizer.learning_rate == 1e-5 and config.data.zoom == (1, 2)
        assert parse_settings(TrainingConfig, yaml.safe_load(config.to_yaml()), "config") == config
        assert load_config(path, ["mixed_precision=no"]).mixed_precision == "no"

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("stepz=3", "unknown key stepz"),
            ("optimizer.lr=1", "unknown key optimizer.lr"),
            ("steps=many", "steps is 'many'"),
            ("dropout.text=1.5", "dropout.text is 1.5"),
            ("optimizer.betas=[0.9, 1.0]", "optimizer.betas.1 is 1.0"),
            ("data.resolution=33", "data.resolution is 33"),
            ("adapter.train=[unet]", "adapter.train.0 is 'unet'"),
            ("dropout.text=0.96", "add up to more than 1"),
            ("identity_loss.recognizer=null", "identity_loss.recognizer"),
            ("optimizer.learning_rate={mixer: 1e-4}", "learning_rate has no value for"),
            ("data.zoom=[2, 1]", "data: zoom has its larger value first"),
            ("steps", "no ="),
            ("steps.x=1", "not a section"),
            ("adapter.num_tokens=true", "adapter.num_tokens is True"),
            ("identity_loss.gradient_steps=9", "gradient_steps is more than steps"),
            ("identity_loss.lora_file=lora.safetensors", "identity_loss: lora_file is given without lora"),
            ("identity_loss.lora=owner/lora", "identity_loss.lora is of samples, and mode prediction takes none"),
            ("identity_loss.resolution=16", "identity_loss.resolution is of samples"),
            ("identity_loss.prompt=portrait", "identity_loss.prompt is of samples"),
            ("identity_loss={mode: few_step, resolution: 64}", "resolution is more than data.resolution"),
            ("loss.extra_samples=true", "loss: extra_samples is true without extra"),
            ("adapter.parts=[mixer]", "which parts does not contain"),
            (
                "validation.judge=dlib/x",
                "validation.judge judges pictures of data.validation",
            ),
        ],
    )
    def test_errors_name_the_key(self, values, tmp_path, override, message):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        with pytest.raises(InputError, match=message) as error:
            load_config(path, [override])
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", ["sd15-1", "sd15-2", "sd15-12gb", "sdxl-1", "sdxl-2", "sdxl-24gb"])
    def test_examples(self, name):
        config = load_config(Path(__file__).parents[2] / f"examples/training/{name}.yaml")
        assert config.adapter.train == ["mixer", "ffrnet", "identity_attention"]
        assert config.base.family == ("sdxl" if name.startswith("sdxl") else "sd")

    def test_missing_keys_and_files(self, values, tmp_path):
        del values["base"]["model"]
        with pytest.raises(InputError, match="lacks base.model"):
            parse_settings(TrainingConfig, values, "config")
        with pytest.raises(InputError, match="cannot be read"):
            load_config(tmp_path / "none.yaml")
