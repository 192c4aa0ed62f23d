"""The command `facesnap`, run in this process."""

from typer.testing import CliRunner

from facesnap_diffusers.cli import app


def command(*arguments):
    """The result of `facesnap ARGUMENTS`; raises what the command raises."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result
