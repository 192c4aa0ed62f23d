"""`facesnap train`: an adapter, from a YAML file."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="YAML file; examples/training has some.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", help="Replaces a value: --set optimizer.learning_rate=1e-5")
    ] = None,
) -> None:
    """
    Train an adapter. For several GPUs: accelerate launch -m facesnap_diffusers.training CONFIG.

    SIGTERM and Ctrl-C save a checkpoint and end the run, with status 128 + signal; the same command continues it.
    """
    import logging

    from ..errors import MissingDependencyError

    try:
        from ..training.trainer import Trainer
        from ..training.training_config import load_config
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'training needs {error.name}: pip install "facesnap-diffusers[train]"'
        ) from error
    logging.basicConfig(format="%(levelname)s: %(message)s")
    trainer = Trainer(load_config(config, overrides or []))
    trainer.train()
    if trainer.stop.signal is not None:
        raise typer.Exit(128 + trainer.stop.signal)
