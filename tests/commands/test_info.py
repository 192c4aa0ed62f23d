"""`facesnap info`: the sizes of fresh and saved adapters."""

import pytest
import tiny
from typer.testing import CliRunner

from facesnap_diffusers import AdapterError, FaceSnapConfig, FaceSnapPipeline, InputError
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


@pytest.mark.parametrize("side", [0, -64, 100, 8256])
def test_sides_are_checked(side):
    result = CliRunner().invoke(app, ["info", "--memory", "--side", str(side)])
    assert isinstance(result.exception, InputError) and "side must be" in str(result.exception)
