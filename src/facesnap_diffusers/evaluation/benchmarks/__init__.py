"""Benchmarks: which images to make, and which scores to print."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ...errors import InputError
from .base import Benchmark
from .multi_id_bench import multi_id_bench
from .nano import nano
from .unsplash50 import unsplash50


BENCHMARKS: dict[str, Callable[[Path, int], Benchmark]] = {
    "unsplash50": unsplash50,
    "multi_id_bench": multi_id_bench,
    "nano": nano,
}


def load_benchmark(name: str, data: str | Path, seed: int = 0) -> Benchmark:
    r"""
    Lists a benchmark's cases.

    Args:
        name (`str`): `"unsplash50"`, `"multi_id_bench"` or `"nano"`.
        data (`str` or `Path`): The folder with its data; `docs/evaluation.md` says what each expects.
        seed (`int`): Of the first image; the others follow by one each.

    Raises:
        InputError: There is no such benchmark, or the folder does not contain its data.
    """
    if name not in BENCHMARKS:
        raise InputError(f"benchmark {name!r} is not known; choose one of {', '.join(BENCHMARKS)}")
    folder = Path(data)
    if not folder.is_dir():
        raise InputError(f"data {str(folder)!r} is not a folder; name the one that contains the benchmark's data")
    return BENCHMARKS[name](folder, seed)
