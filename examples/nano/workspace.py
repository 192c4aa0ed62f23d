"""Where data, checkpoints and logs are kept: `--work-dir`, else $FACESNAP_NANO_DIR, else ~/.cache/facesnap-nano."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from facesnap_diffusers.files import atomic_file


def add_work_dir(parser: argparse.ArgumentParser):
    default = os.environ.get("FACESNAP_NANO_DIR", Path.home() / ".cache/facesnap-nano")
    parser.add_argument(
        "--work-dir", type=Path, default=default, help="data, checkpoints and logs (default: %(default)s)"
    )


def save_array(path: Path, array: np.ndarray):
    """Writes a `.npy` file whole or not at all, and its folder where there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as temporary:
        np.save(temporary, array)
