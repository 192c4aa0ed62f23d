"""`facesnap info`: the sizes of fresh and saved adapters."""

from pathlib import Path

import pytest
import tiny
from safetensors.torch import load_file
from typer.testing import CliRunner

from facesnap_diffusers import AdapterError, FaceSnapConfig, FaceSnapPipeline, InputError
from facesnap_diffusers.adapter.public import NANO_ADAPTER, NANO_FAMILY, PUBLIC_ADAPTERS
from facesnap_diffusers.cli import app


@pytest.mark.parametrize(
    ("family", "numbers"),
    [("sd1", ["361,279,120", "19,169,280"]), ("sdxl", ["1,251,014,160", "340,787,200"])],
)
def test_info_on_a_fresh_adapter(family, numbers):
    """FFRNet as large as the public ControlNets, identity attention as in the public IP-Adapters."""
    result = CliRunner().invoke(app, ["info", "--family", family], env={"COLUMNS": "120"})
    assert result.exit_code == 0
    assert all(number in result.output for number in numbers)


def test_info_on_a_saved_adapter(tmp_path):
    pipe = FaceSnapPipeline.from_pipe(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    pipe.save_facesnap_adapter(tmp_path / "adapter")
    result = CliRunner().invoke(app, ["info", str(tmp_path / "adapter")], env={"COLUMNS": "120"})
    count = sum(parameter.numel() for parameter in pipe.ffrnet.parameters())
    assert result.exit_code == 0
    assert f"{count:,}" in result.output


def test_a_variant_that_does_not_exist(tmp_path):
    pipe = FaceSnapPipeline.from_pipe(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    pipe.save_facesnap_adapter(tmp_path / "adapter")
    result = CliRunner().invoke(app, ["info", str(tmp_path / "adapter"), "--variant", "fp8"])
    assert isinstance(result.exception, AdapterError)
    assert "has no weights of variant 'fp8' in mixer, " in str(result.exception)
    result = CliRunner().invoke(app, ["info", "--variant", "fp16"])
    assert isinstance(result.exception, InputError)
    assert "variant needs an adapter" in str(result.exception)


def test_names_are_not_markup(tmp_path):
    """What stands in square brackets or between colons is printed as it is."""
    pipe = FaceSnapPipeline.from_pipe(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    folder = tmp_path / "[red]x[" / "b]"
    pipe.save_facesnap_adapter(folder)
    FaceSnapConfig.load(folder).replace(license="[/bold] :smile: [link=x]").save(folder)
    result = CliRunner().invoke(app, ["info", str(folder)], env={"COLUMNS": "400"})
    assert result.exit_code == 0
    title, _, facts = result.output.partition("┏")
    assert "".join(title.split()) == str(folder) and "license [/bold] :smile: [link=x]" in facts


def test_public_names_are_whole_in_80_columns():
    result = CliRunner().invoke(app, ["info", "--public"], env={"COLUMNS": "80"})
    words = result.output.split()
    assert result.exit_code == 0 and max(map(len, result.output.splitlines())) <= 80
    assert {line.repo for line in PUBLIC_ADAPTERS} | {Path(line.file).name for line in PUBLIC_ADAPTERS} <= set(words)
    assert words.count("*") == sum(line.default for line in PUBLIC_ADAPTERS) + 1  # and what it means


def test_nano_is_the_one_in_this_package(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["info", "nano"], env={"COLUMNS": "120"})
    tensors = load_file(NANO_ADAPTER / "ffrnet" / "diffusion_pytorch_model.safetensors")
    assert result.exit_code == 0
    assert f"{sum(tensor.numel() for tensor in tensors.values()):,}" in result.output and NANO_FAMILY in result.output
    (tmp_path / "nano").mkdir()
    assert CliRunner().invoke(app, ["info", "nano"]).exit_code != 0  # a folder of this name comes first


@pytest.mark.parametrize("side", [0, -64, 100, 8256])
def test_sides_are_checked(side):
    result = CliRunner().invoke(app, ["info", "--memory", "--side", str(side)])
    assert isinstance(result.exception, InputError) and "side must be" in str(result.exception)
