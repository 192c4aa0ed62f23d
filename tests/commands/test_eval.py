"""`facesnap eval`: options, config files, and errors in one line."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from facesnap_diffusers import InputError
from facesnap_diffusers.cli import app
from facesnap_diffusers.evaluation.eval_config import EvalConfig
from facesnap_diffusers.evaluation.methods import make_method
from facesnap_diffusers.settings import parse_settings, read_yaml


pytestmark = pytest.mark.slow


class TestCommand:
    def invoke(self, *arguments):
        return CliRunner().invoke(app, ["eval", *map(str, arguments)])

    def test_options(self, astronaut, tmp_path):
        result = self.invoke(
            "--benchmark", "nano", "--data", astronaut, "--output", tmp_path, "--method", "reference", "--limit", 2
        )
        assert result.exit_code == 0, result.output
        assert "| reference |" in result.output
        assert (tmp_path / "contact_sheet.png").is_file()

    def test_config_file(self, astronaut, models, tmp_path):
        config = tmp_path / "eval.yaml"
        values = {
            "benchmark": "nano",
            "data": str(astronaut),
            "output": str(tmp_path / "out"),
            "methods": ["text"],
            "sampling": {"base": str(models / "base"), "num_inference_steps": 9, "height": 64},
            "limit": 1,
        }
        config.write_text(yaml.safe_dump(values))
        method = f"facesnap:adapter={models / 'adapter'},landmark_scale=0.5"
        result = self.invoke(config, "--method", method, "--steps", 1, "--sheet-rows", 0)
        assert result.exit_code == 0, result.output
        results = json.loads((tmp_path / "out" / "results.json").read_text())
        settings = results["methods"]["facesnap"]["settings"]
        assert (settings["landmark_scale"], settings["num_inference_steps"], settings["height"]) == (0.5, 1, 64)
        # the recognizer that judges is the one that the adapter was trained with
        assert "flatters" in result.output
        assert not (tmp_path / "out" / "contact_sheet.png").exists()

    def test_example(self):
        path = Path(__file__).parents[2] / "examples/nano/eval.yaml"
        config = parse_settings(EvalConfig, read_yaml(path), str(path))
        names = [make_method(method).name for method in config.methods]
        assert names[0] == "text only"
        assert names[-1] == "the true picture"
        assert len(names) == 11

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("benchmark: nano", "data is missing"),
            ("benchmark: [", "is not YAML"),
            ("- a", "names and values"),
            ("benchmark: nano\ndata: x\noutput: y\nmethods: [text]\nsteps: 3", "steps"),
            ("benchmark: nano\ndata: x\noutput: y\nmethods: text", "methods is 'text'"),
            ("benchmark: nano\ndata: x\noutput: y\nmethods: []", "methods is empty"),
            ("benchmark: nano\ndata: x\noutput: y\nmethods: [text, text]", "two methods"),
            ("benchmark: nano\ndata: x\noutput: y\nmethods: [text]\nsampling: {stepz: 3}", "stepz"),
            ("benchmark: nano\ndata: x\noutput: y\nmethods: [text]\nsampling: 3", "sampling is 3"),
            ("benchmark: nano\ndata: x\noutput: y\nmethods: [text]\nsampling: {height: high}", "height is 'high'"),
            ("benchmark: nano\ndata: x\noutput: y\nmethods: [text]\nbatch_size: 0", "batch_size"),
            ("benchmark: nano\ndata: x\noutput: y\nmethods: [text]\nlimit: true", "limit"),
        ],
    )
    def test_errors(self, tmp_path, text, message):
        (tmp_path / "eval.yaml").write_text(text)
        result = self.invoke(tmp_path / "eval.yaml")
        assert isinstance(result.exception, InputError)
        assert message in str(result.exception)
        assert "\n" not in str(result.exception)
