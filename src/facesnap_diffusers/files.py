"""Files and folders that appear whole or not at all."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """
    Gives a temporary path beside `path` to write to. When the block ends, that file is synced to disk and takes the place
    of `path`; after an error it is removed, and `path` is as it was. It gets the permissions of any new file.
    """
    path = Path(path)
    temporary = _beside(path)
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """
    Gives a temporary folder beside `path` to fill. When the block ends, its files are synced to disk and it takes the
    place of `path`, also where that is a folder already; after an error it is removed, and `path` is as it was. Where
    `path` is a link to a folder, it stays one.
    """
    try:
        path = Path(path).resolve()
    except RuntimeError as error:  # links in a circle
        raise OSError(errno.ELOOP, str(error)) from None
    temporary = _beside(path)
    temporary.mkdir()
    try:
        yield temporary
        for item in temporary.rglob("*"):
            _sync(item)
        _sync(temporary)
        _take_place(temporary, path)
        _sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _beside(path: Path) -> Path:
    """A hidden name that nothing else has, on the same disk. Raises `OSError` where the folder does not exist."""
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such folder", str(path.parent))
    return path.with_name(f".{path.name}.{uuid4().hex}{path.suffix}")


def _take_place(folder: Path, path: Path) -> None:
    """Moves a folder to `path`; what was there goes aside first, and comes back after an error."""
    if not path.exists():
        os.replace(folder, path)
        return
    old = _beside(path)
    os.replace(path, old)
    try:
        os.replace(folder, path)
    except BaseException:
        os.replace(old, path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _sync(path: Path) -> None:
    """
    Has the disk write what was written to a file or folder. Raises `OSError` where a file's content did not reach it, as
    on a full disk.
    """
    if path.is_dir():
        with suppress(OSError):  # not every system can open or sync folders
            _fsync(path, os.O_RDONLY)
    else:
        _fsync(path, os.O_RDWR)


def _fsync(path: Path, flags: int) -> None:
    handle = os.open(path, flags)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
