"""`facesnap eval`: options, config files, and errors in one line."""

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from facesnap_diffusers import InputError, nano_people
from facesnap_diffusers.cli import app
from facesnap_diffusers.evaluation.eval_config import EvalConfig
from facesnap_diffusers.evaluation.methods import make_method
from facesnap_diffusers.evaluation.sampling import Sampling
from facesnap_diffusers.nano.model import SHIPPED_NANO
from facesnap_diffusers.settings import parse_settings, read_yaml


pytestmark = pytest.mark.slow


# as the nano adapter was taught to draw, so that its pictures show faces, which detectors find fast
AS_TAUGHT = ["--steps", 4, "--guidance-scale", 1, "--sheet-rows", 0]


@pytest.fixture
def nano_person(tmp_path):
    """Data of one case, of a person who comes with the nano model."""
    person, folder = nano_people()[0], tmp_path / "data"
    folder.mkdir()
    person.picture.save(folder / "person.png")
    case = {
        "id": "a",
        "person": person.name,
        "prompt": "a photo of a person, smiling, blue shirt, white background",
        "pose": [0.0, 0.0, 0.0],
        "ground_truth": "person.png",
        "driving_landmarks": person.identity.landmarks.tolist(),
    }
    people = {person.name: {"reference": ["person.png"], "landmarks": case["driving_landmarks"]}}
    manifest = {"format": "facesnap-nano-eval", "version": 2, "people": people, "cases": [case]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


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

    def test_nano_by_its_name(self, nano_person, tmp_path, monkeypatch):
        """Base and adapter of the package; their content counts as if their folders had been named."""
        monkeypatch.chdir(tmp_path)
        data = ["--benchmark", "nano", "--data", nano_person]
        result = self.invoke(
            *data, "--output", "out", "--base", "nano", "--method", "facesnap:adapter=nano", "--limit", 1, *AS_TAUGHT
        )
        assert result.exit_code == 0, result.output
        assert "| facesnap |" in result.output and "similarity† ↑, n=1" in result.output
        results = json.loads(Path("out/results.json").read_text())["methods"]["facesnap"]
        assert (results["scheduler"], results["settings"]["base"]) == ("DDIMScheduler", "nano")
        by_folder = make_method({"kind": "facesnap", "adapter": str(SHIPPED_NANO / "adapter")})
        settings = by_folder.settings(Sampling(base=str(SHIPPED_NANO / "base")))
        for name in ("digest of base", "digest of adapter"):
            assert results["settings"][name] == settings[name]
        Path("nano").mkdir()
        result = self.invoke(*data, "--output", "other", "--base", "nano", "--method", "text")
        assert isinstance(result.exception, InputError) and "'nano' could not be loaded" in str(result.exception)

    def test_the_config_of_the_documentation(self, nano_person, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        page = (Path(__file__).parents[2] / "docs/evaluation.md").read_text()
        (config,) = [block for block in re.findall("```yaml\n(.*?)```", page, re.DOTALL) if "benchmark:" in block]
        Path("eval.yaml").write_text(config)
        result = self.invoke("eval.yaml", "--data", nano_person, *AS_TAUGHT)
        assert result.exit_code == 0, result.output
        names = [make_method(method).name for method in yaml.safe_load(config)["methods"]]
        assert list(json.loads(Path("results/results.json").read_text())["methods"]) == names

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
