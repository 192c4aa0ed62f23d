"""The latents of fixed crops on disk, computed once, so that training need neither decode photos nor run the VAE."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..errors import InputError
from ..files import atomic_file


CHUNK = 1024
SETTINGS = "settings.json"


class CropLatents:
    r"""
    Latents by the crop's number, in float16, in files of 1024. Which crops share a batch of the VAE does not depend on
    the number of processes, nor on where a run was stopped: the latents are the same bits.

    Args:
        folder (`Path`): Of the files; all processes must see it.
        count (`int`): Crops.
        settings (`dict`): What the latents depend on. Those of other settings are refused.
    """

    def __init__(self, folder: Path, count: int, settings: dict[str, Any]):
        self.folder = folder
        self.count = count
        self.settings = json.loads(json.dumps(settings))
        self._chunks: dict[int, np.ndarray] = {}

    def __getitem__(self, number: int) -> torch.Tensor:
        """`(channels, height, width)`, in float32."""
        chunk, place = divmod(number, CHUNK)
        if chunk not in self._chunks:
            self._chunks[chunk] = np.load(self._path(chunk), mmap_mode="r")
        return torch.from_numpy(self._chunks[chunk][place].astype(np.float32))

    def compute(
        self, encode: Callable[[range], torch.Tensor], batch_size: int, rank: int = 0, world_size: int = 1
    ) -> None:
        r"""
        Computes what is not there yet, each process its share. All must have finished before one of them reads.

        Args:
            encode (function): Latents `(numbers, channels, height, width)` of crops by their numbers.
            batch_size (`int`): Crops that are encoded at once.
            rank (`int`), world_size (`int`): This process, and how many there are.

        Raises:
            InputError: The folder holds latents of other settings.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / SETTINGS
        if path.exists():
            if json.loads(path.read_text()) != self.settings:
                raise InputError(f"{self.folder} has latents of other data, crops or base; use another output_dir")
        else:
            with atomic_file(path) as temporary:
                temporary.write_text(json.dumps(self.settings, indent=2))
        todo = {
            chunk: range(chunk * CHUNK, min((chunk + 1) * CHUNK, self.count))
            for chunk in range(rank, -(-self.count // CHUNK), world_size)
            if not self._path(chunk).exists()
        }
        total = sum(map(len, todo.values()))
        with tqdm(total=total, unit="crop", desc="latents", disable=rank > 0 or not todo) as bar:
            for chunk, numbers in todo.items():
                batches = []
                for start in range(0, len(numbers), batch_size):
                    batches.append(encode(numbers[start : start + batch_size]).half().cpu().numpy())
                    bar.update(len(batches[-1]))
                with atomic_file(self._path(chunk)) as temporary:  # a file that is there is complete
                    np.save(temporary, np.concatenate(batches))  # (crops, channels, height, width)

    def _path(self, chunk: int) -> Path:
        return self.folder / f"{chunk:06d}.npy"
