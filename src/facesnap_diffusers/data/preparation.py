"""Prepares an input of any size: photo by photo, in several processes, continuing where it was stopped."""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from ..errors import InputError, MissingDependencyError
from ..faces.analyzers import FaceAnalyzer
from .duplicates import DuplicateFinder
from .people import can_be_clustered, divide_people
from .photo_preparation import PhotoPreparer, mirrored_hash
from .prepared_face import PreparedFace
from .shard_settings import PrepareConfig
from .shards import PhotoRecord, ShardWriter, forget, read_people, read_record, read_records, records_with_starts
from .sources import Item


Result = tuple[Item, PhotoRecord, PreparedFace | None]

_FAILURES_IN_A_ROW = 20
# Of 75 photos with dlib, 72 had a face hash within 7 bits of their own cropped or mirrored copies', and an embedding within
# 0.21 of its length; the nearest other person's face hash was 8 bits away.
_MORE_BITS = 3
_SAME_PHOTO = 0.25


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
    providers: list[str] | None = None,
    devices: list[int] | None = None,
    retry: Collection[str] = (),
    progress: bool = True,
) -> None:
    r"""
    Prepares photos into a folder of shards; [`read_records`] says what became of each. Results come in the order of the
    input whatever the number of processes, so the same input gives the same shards. A photo that has a record in the
    manifest is not prepared again. At the end [`divide_people`] says who the photos show.

    Args:
        items (iterable of [`Item`]): The photos; see [`open_source`].
        output (`str` or `Path`): The folder of shards.
        config ([`PrepareConfig`], *optional*): How.
        processes (`int`): On this machine; 1 works in this process.
        ray (`bool`): Uses the machines of a Ray cluster in place of processes; `processes` is the number of workers.
        total (`int`, *optional*): Number of all photos, for the remaining time.
        shard_bytes (`int`): A shard that has reached this size is closed.
        analyzer (function, *optional*): Makes the face analyzer, see [`PhotoPreparer`].
        providers (`list[str]`, *optional*): Execution providers of ONNX Runtime, see [`PhotoPreparer`].
        devices (`list[int]`, *optional*): GPUs of analyzer and captioning model; the processes take turns: with 16 processes
            on 8, each GPU has two.
        retry (collection of `str`): Reasons for which photos were left out, e.g. `"failed"`: these photos are tried again.
        progress (`bool`): Shows a progress bar.

    Raises:
        InputError: The folder was prepared with other settings, another process writes into it, the face encoder is unknown,
            its models or the captioning model could not be loaded, or 20 photos in a row failed with the same error.
        MissingDependencyError: A library is not installed.
    """
    config = config or PrepareConfig()
    preparer = PhotoPreparer(config, analyzer, providers, devices[0] if devices else None)
    preparer.check()  # a photo is not to be blamed for what is wrong with all
    if ray or processes > 1:
        preparer.release()
    forget(output, retry)
    with ShardWriter(output, config.shard_settings(), shard_bytes) as writer:
        duplicates = _Duplicates(config.duplicate_bits, Path(output))
        todo = (item for item in items if item.source not in writer)
        if ray:
            results = _with_ray(todo, preparer, processes, devices)
        elif processes > 1:
            results = _with_processes(todo, preparer, processes, devices)
        else:
            results = ((item, *preparer(item)) for item in todo)
        failures: list[str] = []
        bar = tqdm(results, initial=writer.total, total=total, unit="photo", disable=not progress, smoothing=0.05)
        for _, record, sample in bar:
            twin = None if sample is None else duplicates.find(record, sample)
            if twin is not None:
                record = PhotoRecord(record.source, False, "duplicate", f"of {twin}", identity=record.identity)
                sample = None
            start = writer.write(record, sample)
            if sample is not None:
                duplicates.add(record, start)
            # of one kind: texts may name the photo
            kind = f"{record.reason} {record.detail.partition(':')[0]}"
            failures = [*failures, kind] if record.reason in ("failed", "crashed") else []
            if len(failures) >= _FAILURES_IN_A_ROW and len(set(failures)) == 1:
                raise InputError(
                    f"{len(failures)} photos in a row {record.reason} with {record.detail!r}; mend that and prepare again with"
                    f" --retry {record.reason}"
                )
            failures = failures[-_FAILURES_IN_A_ROW:]
            bar.set_postfix(kept=writer.count)
        divide_people(output, config.same_person, config.validation)


class _Duplicates:
    """The kept photos of a folder, as far as it takes to recognize another copy of one of them."""

    def __init__(self, bits: int, folder: Path):
        self._photos = DuplicateFinder(bits)
        self._faces = DuplicateFinder(bits + _MORE_BITS if bits >= 0 else -1)
        self._folder = folder
        start = 0
        if bits >= 0:
            for record, start in records_with_starts(folder):
                if record.kept:
                    self.add(record, start)

    def add(self, record: PhotoRecord, start: int) -> None:
        for finder, value in ((self._photos, record.phash), (self._faces, record.face_hash)):
            if value is not None:
                finder.add(value, start)

    def find(self, record: PhotoRecord, sample: PreparedFace) -> str | None:
        """The name of a kept photo of which this is a copy: scaled, compressed, mirrored, or with another border."""
        for value in _both_ways(record.phash):
            start = self._photos.find(value)
            if start is not None:
                return read_record(self._folder, start).source
        for value in _both_ways(record.face_hash):
            start = self._faces.find(value)
            if start is None:
                continue
            twin = read_record(self._folder, start)
            shard, first, last = twin.place()
            with open(self._folder / shard, "rb") as file:
                file.seek(first)
                embedding = PreparedFace.from_tar(file.read(last - first)).embedding
            # of one photo; two of one person differ more
            distance = np.linalg.norm(embedding - sample.embedding) / np.linalg.norm(embedding)
            if distance < _SAME_PHOTO:
                return twin.source
        return None


def _both_ways(phash: int | None) -> list[int]:
    return [] if phash is None else [phash, mirrored_hash(phash)]


def statistics(folder: str | Path) -> dict[str, Any]:
    """
    Counts of a prepared folder: `photos`, `kept`, `shards`, `reasons` with the photos left out for each; of the photos that
    are used `people`, `clustered` (people found among photos without a label), `not_clustered` (photos without a label that
    were too many to compare), and `validation` (photos set aside).
    """
    reasons: dict[str, int] = {}
    shards: set[str | None] = set()
    labels: set[str | None] = set()
    photos = kept = unlabeled = 0
    for record in read_records(folder):
        photos += 1
        if record.kept:
            kept += 1
            unlabeled += record.identity is None
            shards.add(record.shard)
            labels.add(record.identity)
        else:
            reasons[record.reason] = reasons.get(record.reason, 0) + 1
    people: set[str | None] = set()
    validation = 0
    divided = False
    for member in read_people(folder):
        divided = True
        if member.left_out is not None:
            kept -= 1
            reasons[member.left_out] = reasons.get(member.left_out, 0) + 1
            continue
        people.add(member.person)
        validation += member.split == "validation"
    people = (people if divided else labels) - {None}
    return {
        "photos": photos,
        "kept": kept,
        "people": len(people),
        "clustered": len(people - labels),
        "not_clustered": 0 if can_be_clustered(unlabeled) else unlabeled,
        "validation": validation,
        "shards": len(shards),
        "reasons": dict(sorted(reasons.items(), key=lambda item: -item[1])),
    }


_preparer: PhotoPreparer | None = None


def _start_process(preparer: PhotoPreparer, devices: list[int] | None = None, started: Any = None) -> None:
    global _preparer
    import torch

    # one process per core is fastest; more threads would compete for the cores
    torch.set_num_threads(1)
    _preparer = preparer
    if devices and started is not None:
        with started.get_lock():
            number, started.value = started.value, started.value + 1
        preparer.device_id = devices[number % len(devices)]


def _prepare_in_process(item: Item) -> tuple[PhotoRecord, PreparedFace | None]:
    assert _preparer is not None
    return _preparer(item)


def _with_processes(
    items: Iterable[Item], preparer: PhotoPreparer, processes: int, devices: list[int] | None = None
) -> Iterator[Result]:
    """In order, with a bounded number of photos underway. A photo that kills its process is identified and recorded."""

    def start(count: int) -> ProcessPoolExecutor:
        context = get_context("spawn")  # CUDA, ONNX Runtime and threads do not survive a fork
        arguments = (preparer, devices, context.Value("i", 0))
        return ProcessPoolExecutor(count, context, initializer=_start_process, initargs=arguments)

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

    def __init__(self, preparer: PhotoPreparer, devices: list[int] | None):
        _start_process(preparer)
        if devices:
            # which of the cluster's workers this is only Ray knows; the process number spreads them as well
            preparer.device_id = devices[os.getpid() % len(devices)]

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        item = Item(**pickle.loads(row["item"]))
        return {"result": pickle.dumps((item, *_prepare_in_process(item)))}


def _with_ray(
    items: Iterable[Item], preparer: PhotoPreparer, workers: int, devices: list[int] | None = None
) -> Iterator[Result]:
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
        data = data.map(_RayWorker, fn_constructor_args=(preparer, devices), concurrency=workers)
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
