"""Prepares an input of any size: photo by photo, in several processes, continuing where it was stopped."""

from __future__ import annotations

import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from ..errors import MissingDependencyError
from ..faces.analyzers import FaceAnalyzer
from .duplicates import DuplicateFinder
from .photo_preparation import PhotoPreparer
from .prepared_face import PreparedFace
from .shard_settings import PrepareConfig
from .shards import PhotoRecord, ShardWriter, read_records
from .sources import Item


Result = tuple[Item, PhotoRecord, PreparedFace | None]


def prepare(
    items: Iterable[Item],
    output: str | Path,
    config: PrepareConfig | None = None,
    *,
    processes: int = 1,
    ray: bool = False,
    total: int | None = None,
    shard_bytes: int = 500_000_000,
    analyzer: Callable[[], FaceAnalyzer] | None = None,
    progress: bool = True,
) -> list[PhotoRecord]:
    r"""
    Prepares photos into a folder of shards. Results come in the order of the input whatever the number of processes, so
    the same input gives the same shards. A photo that has a record in the manifest is not prepared again.

    Args:
        items (iterable of [`Item`]): The photos; see [`open_source`].
        output (`str` or `Path`): The folder of shards.
        config ([`PrepareConfig`], *optional*): How.
        processes (`int`): On this machine; 1 works in this process.
        ray (`bool`): Uses the machines of a Ray cluster in place of processes; `processes` is the number of workers.
        total (`int`, *optional*): Number of all photos, for the remaining time.
        shard_bytes (`int`): A shard that has reached this size is closed.
        analyzer (function, *optional*): Makes the face analyzer, see [`PhotoPreparer`].
        progress (`bool`): Shows a progress bar.

    Returns:
        `list[PhotoRecord]`: What became of each photo, those of former runs included.

    Raises:
        InputError: The folder was prepared with other settings.
    """
    config = config or PrepareConfig()
    preparer = PhotoPreparer(config, analyzer)
    with ShardWriter(output, config.shard_settings(), shard_bytes) as writer:
        duplicates = DuplicateFinder(config.duplicate_bits)
        done = {record.source for record in writer.records}
        for record in writer.records:
            if record.phash is not None:
                duplicates.add(record.phash, record.source)

        todo = (item for item in items if item.source not in done)
        if ray:
            results = _with_ray(todo, preparer, processes)
        elif processes > 1:
            results = _with_processes(todo, preparer, processes)
        else:
            results = ((item, *preparer(item)) for item in todo)
        bar = tqdm(results, initial=len(done), total=total, unit="photo", disable=not progress, smoothing=0.05)
        for _item, record, sample in bar:
            if record.phash is not None:
                twin = duplicates.find(record.phash)
                if twin is None:
                    duplicates.add(record.phash, record.source)
                else:
                    record, sample = (
                        PhotoRecord(record.source, False, "duplicate", f"of {twin}", identity=record.identity),
                        None,
                    )
            writer.write(record, sample)
            bar.set_postfix(kept=writer.count)
        return writer.records


def statistics(folder: str | Path) -> dict[str, Any]:
    """Counts of a prepared folder: `photos`, `kept`, `people`, `shards`, and `reasons` with the photos left out for each."""
    reasons: dict[str, int] = {}
    people, shards = set(), set()
    photos = kept = 0
    for record in read_records(folder):
        photos += 1
        if record.kept:
            kept += 1
            shards.add(record.shard)
            people.add(record.identity)
        else:
            reasons[record.reason] = reasons.get(record.reason, 0) + 1
    return {
        "photos": photos,
        "kept": kept,
        "people": len(people - {None}),
        "shards": len(shards),
        "reasons": dict(sorted(reasons.items(), key=lambda item: -item[1])),
    }


_preparer: PhotoPreparer | None = None


def _start_process(preparer: PhotoPreparer) -> None:
    global _preparer
    import torch

    # one process per core is fastest; more threads would compete for the cores
    torch.set_num_threads(1)
    _preparer = preparer


def _prepare_in_process(item: Item) -> tuple[PhotoRecord, PreparedFace | None]:
    assert _preparer is not None
    return _preparer(item)


def _with_processes(items: Iterable[Item], preparer: PhotoPreparer, processes: int) -> Iterator[Result]:
    """In order, with a bounded number of photos underway. A photo that kills its process is identified and recorded."""

    def start(count: int) -> ProcessPoolExecutor:
        context = get_context("spawn")  # CUDA, ONNX Runtime and threads do not survive a fork
        return ProcessPoolExecutor(count, context, initializer=_start_process, initargs=(preparer,))

    items = iter(items)
    pool = start(processes)
    underway: deque[tuple[Item, Future]] = deque()
    try:
        while True:
            while len(underway) < 4 * processes and (item := next(items, None)) is not None:
                try:
                    underway.append((item, pool.submit(_prepare_in_process, item)))
                except BrokenProcessPool as error:
                    failed: Future = Future()
                    failed.set_exception(error)
                    underway.append((item, failed))
            if not underway:
                return
            item, future = underway.popleft()
            try:
                yield (item, *future.result())
            except BrokenProcessPool:
                # all that were underway are lost, and one of them is the reason: they go through one by one
                suspects = [item, *(queued for queued, _ in underway)]
                underway.clear()
                pool.shutdown(wait=False, cancel_futures=True)
                pool = start(1)
                for suspect in suspects:
                    try:
                        yield (suspect, *pool.submit(_prepare_in_process, suspect).result())
                    except BrokenProcessPool:
                        record = PhotoRecord(
                            suspect.source, False, "crashed", "its process died", identity=suspect.identity
                        )
                        yield suspect, record, None
                        pool = start(1)
                pool.shutdown()
                pool = start(processes)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


class _RayWorker:
    """One worker of Ray Data: the same function as in a process."""

    def __init__(self, preparer: PhotoPreparer):
        _start_process(preparer)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        item = Item(**pickle.loads(row["item"]))
        return {"result": pickle.dumps((item, *_prepare_in_process(item)))}


def _with_ray(items: Iterable[Item], preparer: PhotoPreparer, workers: int) -> Iterator[Result]:
    """In order, over the workers of a cluster. Only this process writes."""
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError('--ray needs ray: pip install "facesnap-diffusers[ray]"') from error
    ray.data.DataContext.get_current().execution_options.preserve_order = True
    for chunk in _chunks(items):
        rows = [{"item": pickle.dumps(vars(item))} for item in chunk]
        blocks = min(len(rows), 8 * workers)
        data = ray.data.from_items(rows, override_num_blocks=blocks)
        data = data.map(_RayWorker, fn_constructor_args=(preparer,), concurrency=workers)
        for row in data.iter_rows():
            yield pickle.loads(row["result"])


def _chunks(items: Iterable[Item], most: int = 1_000_000, most_bytes: int = 2**30) -> Iterator[list[Item]]:
    """As many photos as the driver may hold at once: a million paths, or a gigabyte."""
    chunk: list[Item] = []
    held = 0
    for item in items:
        chunk.append(item)
        held += len(item.photo or "")
        if len(chunk) >= most or held >= most_bytes:
            yield chunk
            chunk, held = [], 0
    if chunk:
        yield chunk
