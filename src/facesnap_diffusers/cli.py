"""The `facesnap` command."""

import sys
from typing import Annotated

import typer

from . import __version__
from .commands.app import app as web_app
from .commands.convert import convert
from .commands.demo import demo
from .commands.eval import evaluate
from .commands.info import info
from .commands.landmarks import landmarks
from .commands.package_hub_repo import package_hub_repo
from .commands.prepare import prepare
from .commands.train import train
from .errors import FaceSnapError, one_line


#: The extra of setup.cfg that contains what a command needs besides the package itself.
EXTRAS = {"app": "app", "eval": "eval", "prepare": "train", "train": "train"}

app = typer.Typer(
    name="facesnap",
    help="Identity-preserving portraits for 🧨 diffusers.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
app.command("app")(web_app)
app.command()(convert)
app.command()(demo)
app.command("eval")(evaluate)
app.command()(info)
app.command()(landmarks)
app.command()(package_hub_repo)
app.command()(prepare)
app.command()(train)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"facesnap {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Identity-preserving portraits for 🧨 diffusers."""


def main() -> None:
    """Runs the command. Errors that are not a fault of this package are one line, not a traceback."""
    try:
        app()
    except FaceSnapError as error:
        sys.exit(f"facesnap: {error}")
    except ModuleNotFoundError as error:
        module = (error.name or "").partition(".")[0]
        if module in ("", "facesnap_diffusers"):
            raise
        command = next((argument for argument in sys.argv[1:] if not argument.startswith("-")), "")
        package = f'"facesnap-diffusers[{EXTRAS[command]}]"' if command in EXTRAS else module
        sys.exit(f"facesnap: {command} needs {module}, which is not installed: pip install {package}")
    except OSError as error:  # a file or folder that cannot be read or written, a full disk, no connection
        sys.exit(f"facesnap: {one_line(error)}")


if __name__ == "__main__":
    main()
