"""Where data, checkpoints and logs are kept: `--work-dir`, else $FACESNAP_NANO_DIR, else ~/.cache/facesnap-nano."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np


def add_work_dir(parser: argparse.ArgumentParser):
    default = os.environ.get("FACESNAP_NANO_DIR", Path.home() / ".cache/facesnap-nano")
    parser.add_argument(
        "--work-dir", type=Path, default=default, help="data, checkpoints and logs (default: %(default)s)"
    )


def save_array(path: Path, array: np.ndarray):
    def write(temporary: Path):
        with open(temporary, "wb") as file:
            np.save(file, array)

    replace_atomically(path, write)


def replace_atomically(path: Path, write):
    """Calls `write(temporary_path)`, then renames: a reader or a killed run never leaves half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{path.name}")
    write(temporary)
    os.replace(temporary, path)
