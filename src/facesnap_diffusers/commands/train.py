"""`facesnap train`: an adapter, from a YAML file."""

import os
import sys
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
    status = 0 if trainer.stop.signal is None else 128 + trainer.stop.signal
    if trainer.accelerator.num_processes > 1:
        # Freed, Gloo's process group waits for its thread, and that at times for Python's lock, which this thread holds:
        # all is written, so the process ends without freeing it.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    if status:
        raise typer.Exit(status)
