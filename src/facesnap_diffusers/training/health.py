"""What keeps a long run healthy: steps that are not finite, requests to stop, and how fast it goes."""

from __future__ import annotations

import contextlib
import random
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from ..errors import InputError


try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class StopRequest:
    r"""
    Within this context, the first SIGTERM or Ctrl-C only sets `signal`, so that the run can save and end; the second one
    has its usual effect.

    Attributes:
        signal (`int`, *optional*): The signal that came.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._former: dict[int, Any] = {}

    def __bool__(self) -> bool:
        return self.signal is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # others cannot set handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self._former[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *exception: object) -> None:
        for number in list(self._former):
            self._restore(number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        self._restore(number)

    def _restore(self, number: int) -> None:
        former = self._former.pop(number, None)
        signal.signal(number, signal.SIG_DFL if former is None else former)


def ignore_stop_signals(worker: int) -> None:
    """
    For processes that read ahead: a scheduler's SIGTERM and a terminal's Ctrl-C reach all processes, and the run needs these
    until it has saved. They end with the process that they read for.
    """
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class SpeedMeter:
    """Samples a second, the share of the time in which a process waits for data, and its memory, since the last reading."""

    def __init__(self, device: torch.device):
        self._device = device
        self._restart()

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts this context as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count this context at all: saving and validation."""
        start = time.perf_counter()
        yield
        self._started += time.perf_counter() - start

    def read(self, samples: int) -> dict[str, float]:
        """`samples_per_second`, `data_waiting` (a share) and `memory_gb`, of `samples` since the last reading."""
        passed = max(time.perf_counter() - self._started, 1e-9)
        if self._device.type == "cuda":
            memory = torch.cuda.max_memory_allocated(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
        elif resource is None:
            memory = 0
        else:
            # the most so far; in kilobytes except on macOS
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        values = {
            "samples_per_second": samples / passed,
            "data_waiting": self._waited / passed,
            "memory_gb": memory / 1e9,
        }
        self._restart()
        return values

    def _restart(self) -> None:
        self._started = time.perf_counter()
        self._waited = 0.0


@contextlib.contextmanager
def kept_random_state() -> Iterator[None]:
    """Within this context random numbers may be drawn without an effect on those after it."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def all_finite(tensors: Any) -> bool:
    """Whether all numbers of all tensors are finite. One at a time: they may fill most of a GPU's memory."""
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def in_any_process(accelerator: Accelerator, *flags: bool) -> list[bool]:
    """Whether each flag is set in one process at least, so that all processes do the same."""
    if accelerator.num_processes == 1:
        return list(flags)
    counts = accelerator.reduce(torch.tensor([float(flag) for flag in flags], device=accelerator.device), "sum")
    return [count > 0 for count in counts.tolist()]


def check_sharding(state: Any) -> None:
    r"""
    Args:
        state (`AcceleratorState`): How several processes share the work.

    Raises:
        InputError: Parameters are sharded over them (FSDP); the averaged weights, the adapter that is saved and the
            validation of the main process need whole ones. Or DeepSpeed steps: it does so within the backward pass, before
            anything can be said of the gradient, and clips by a setting of its own.
    """
    if getattr(state, "fsdp_plugin", None) is not None:
        way = f"FSDP{state.fsdp_plugin.fsdp_version}"
    elif getattr(state, "deepspeed_plugin", None) is not None:
        way = "DeepSpeed"
    else:
        return
    raise InputError(
        f"training does not work with {way}; run accelerate config and choose multi-GPU (DDP), with optimizer.name"
        " adamw_8bit where memory is short"
    )
