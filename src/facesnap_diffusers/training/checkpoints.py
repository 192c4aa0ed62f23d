"""Checkpoints from which a run continues exactly where it was."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError

from ..errors import InputError, TrainingError, one_line


logger = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
_PARTIAL = "partial"
_REMOVED = "removed"


class Progress:
    """
    What a run has done, as accelerate saves and loads it.

    Attributes:
        step (`int`): Steps done, those without an update included.
        skipped (`int`): Steps whose loss or gradient was not finite, without an update of the weights.
        best (`float`, *optional*): The best likeness at a validation so far.
        optimizer (`str`): Whose states a checkpoint has.
    """

    def __init__(self, optimizer: str = "adamw") -> None:
        self.optimizer = optimizer
        self.step = 0
        self.skipped = 0
        self.best: float | None = None

    def state_dict(self) -> dict[str, Any]:
        return dict(vars(self))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        vars(self).update(state)


def checkpoint_folders(folder: Path) -> list[Path]:
    """Complete checkpoints, the oldest first."""
    complete = [path for path in folder.glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()]
    return sorted(complete, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, keep: int) -> None:
    r"""
    Writes a checkpoint of all that is registered with `accelerator`, with checksums; it gets its name when it is complete
    and on the disk.

    Raises:
        TrainingError: It cannot be written, e.g. on a full disk; the checkpoints before are unchanged.
    """
    partial, complete = folder / f"checkpoint-{_PARTIAL}", folder / f"checkpoint-{step}"
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(partial))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            _write_checksums(partial)
            shutil.rmtree(complete, ignore_errors=True)
            partial.rename(complete)
            _sync(folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise TrainingError(
            f"the checkpoint of step {step} cannot be written to {folder} ({one_line(error)}); make room and start again:"
            " the run continues from the checkpoint before"
        ) from error
    if accelerator.is_main_process:
        for old in checkpoint_folders(folder)[:-keep]:
            # without its name first: one that is half removed is not a checkpoint
            removed = folder / f"checkpoint-{_REMOVED}"
            shutil.rmtree(removed, ignore_errors=True)
            old.rename(removed)
            shutil.rmtree(removed, ignore_errors=True)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, folder: Path) -> bool:
    r"""
    Loads the last undamaged checkpoint, if there is one. Damaged ones after it are renamed to `damaged-...`.

    Raises:
        InputError: It is of another config, or all checkpoints are damaged.
    """
    chosen = [_last_undamaged(folder) if accelerator.is_main_process else None]
    broadcast_object_list(chosen)
    if chosen[0] is None:
        return False
    try:
        accelerator.load_state(str(chosen[0]))
    except (RuntimeError, ValueError, KeyError, OSError, SafetensorError) as error:
        raise InputError(
            f"{chosen[0]} does not fit this config ({one_line(error)}); use another output_dir, or set resume to false"
        ) from error
    return True


def set_aside(folder: Path) -> None:
    """Moves the checkpoints of a former run out of the way of a new one, to `former-run-N`."""
    former = checkpoint_folders(folder)
    if not former:
        return
    number = 1
    while (folder / f"former-run-{number}").exists():
        number += 1
    (folder / f"former-run-{number}").mkdir()
    for path in former:
        path.rename(folder / f"former-run-{number}" / path.name)


def _last_undamaged(folder: Path) -> Path | None:
    folders = checkpoint_folders(folder)
    for path in reversed(folders):
        damage = _damage(path)
        if damage is None:
            return path
        logger.warning("%s is damaged (%s); the checkpoint before it is used", path, damage)
        aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    if folders:
        raise InputError(f"all checkpoints in {folder} are damaged; restore one, or start again to train from step 0")
    return None


def _write_checksums(folder: Path) -> None:
    files = [path for path in folder.rglob("*") if path.is_file()]
    sums = {path.relative_to(folder).as_posix(): _checksum(path) for path in sorted(files)}
    (folder / CHECKSUMS).write_text(json.dumps(sums, indent=2) + "\n")
    for path in [*files, folder / CHECKSUMS, *(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _sync(path)


def _damage(folder: Path) -> str | None:
    """What is wrong with a checkpoint, by its checksums."""
    path = folder / CHECKSUMS
    try:
        sums = json.loads(path.read_text())
        for name, checksum in sums.items():
            if not (folder / name).is_file():
                return f"{name} is missing"
            if _checksum(folder / name) != checksum:
                return f"{name} has changed"
    except FileNotFoundError:
        return f"{CHECKSUMS} is missing"
    except (OSError, ValueError, AttributeError) as error:  # the disk, or no table of sums
        return one_line(error)
    return None


def _checksum(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # folders cannot be opened everywhere
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
