"""What several tests run: the command line, and one small image."""

import tiny
from typer.testing import CliRunner

from facesnap_diffusers.cli import app


CALL = {"num_inference_steps": 3, "output_type": "pt", "height": 64, "width": 64, "guidance_scale": 5.0}


def generate(pipe, **kwargs):
    return pipe("a cat", generator=tiny.seeded(), **CALL, **kwargs).images


def command(*arguments):
    """The result of a `facesnap` command; its own errors are raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
