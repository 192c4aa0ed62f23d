"""Checkpoints from which a run continues exactly where it was."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..errors import InputError, one_line


_PARTIAL = "partial"


class Progress:
    """The steps done, as accelerate saves and loads it."""

    def __init__(self) -> None:
        self.step = 0

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.step = state["step"]


def checkpoint_folders(folder: Path) -> list[Path]:
    """Complete checkpoints, the oldest first."""
    complete = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(complete, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int) -> None:
    """Writes a checkpoint of all that is registered with `accelerator`; it gets its name when it is complete."""
    partial, complete = folder / f"checkpoint-{_PARTIAL}", folder / f"checkpoint-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(complete, ignore_errors=True)
        partial.rename(complete)
        for old in checkpoint_folders(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, folder: Path) -> bool:
    """Loads the last checkpoint, if there is one."""
    folders = checkpoint_folders(folder)
    if not folders:
        return False
    try:
        accelerator.load_state(str(folders[-1]))
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise InputError(
            f"{folders[-1]} does not fit this config ({one_line(error)}); use another output_dir, or set resume to false"
        ) from error
    return True
