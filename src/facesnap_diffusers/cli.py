"""The `facesnap` command."""

import sys

import typer

from .commands.convert import convert
from .commands.demo import demo
from .commands.eval import evaluate
from .commands.info import info
from .commands.landmarks import landmarks
from .commands.package_hub_repo import package_hub_repo
from .commands.prepare import prepare
from .commands.train import train
from .errors import FaceSnapError


app = typer.Typer(
    name="facesnap",
    help="Identity-preserving portraits for 🧨 diffusers.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
)
app.command()(convert)
app.command()(demo)
app.command("eval")(evaluate)
app.command()(info)
app.command()(landmarks)
app.command()(package_hub_repo)
app.command()(prepare)
app.command()(train)


def main() -> None:
    """Runs the command; an error that this package raises on purpose is one line, not a traceback."""
    try:
        app()
    except FaceSnapError as error:
        sys.exit(f"facesnap: {error}")


if __name__ == "__main__":
    main()
