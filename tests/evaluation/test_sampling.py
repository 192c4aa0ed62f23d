"""Bases with components of their own: imported because a setting names their module, not by the evaluation."""

import subprocess
import sys

import pytest
import tiny
from typer.testing import CliRunner

from facesnap_diffusers import InputError
from facesnap_diffusers.cli import app
from facesnap_diffusers.evaluation.sampling import Sampling, load_base


pytestmark = pytest.mark.slow


def test_the_nano_base(tmp_path):
    """In a process of its own, in which the nano model is not imported yet, neither by the evaluation."""
    tiny.write_nano(tmp_path)
    script = f"""
import sys
import facesnap_diffusers.evaluation.evaluate
from facesnap_diffusers import InputError
from facesnap_diffusers.cli import app
from facesnap_diffusers.evaluation.sampling import Sampling, load_base

assert "facesnap_diffusers.nano.autoencoder" not in sys.modules
try:
    load_base(Sampling(base={str(tmp_path / "base")!r}))
except InputError as error:
    print(error)
pipe = load_base(Sampling(base={str(tmp_path / "base")!r}, imports=["facesnap_diffusers.nano.autoencoder"]))
print(type(pipe.vae).__name__)
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    error, name = result.stdout.splitlines()
    assert "could not be loaded" in error
    assert "sampling.imports" in error
    assert name == "AutoencoderPatch"


def test_a_module_that_does_not_exist(astronaut, tmp_path):
    with pytest.raises(InputError, match="sampling.imports: 'no_such_module' cannot be imported"):
        load_base(Sampling(base=str(tmp_path), imports=["no_such_module"]))
    options = [
        "--benchmark",
        "nano",
        "--data",
        astronaut,
        "--output",
        tmp_path / "out",
        "--base",
        "b",
        "--method",
        "text",
    ]
    result = CliRunner().invoke(app, ["eval", *map(str, options), "--import", "another_module"])
    assert isinstance(result.exception, InputError)
    assert "'another_module' cannot be imported" in str(result.exception)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dtype": "int8"}, "dtype"),
        ({"height": 0}, "height"),
        ({"num_inference_steps": True}, "num_inference_steps"),
        ({"guidance_scale": float("nan")}, "guidance_scale"),
        ({"imports": "module"}, "imports"),
    ],
)
def test_wrong_values(values, message):
    with pytest.raises(InputError, match=f"Sampling: {message} is "):
        Sampling(**values)
