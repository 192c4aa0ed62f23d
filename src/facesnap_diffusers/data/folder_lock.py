"""One process at a time writes into a folder."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from types import TracebackType
from typing import IO

from ..errors import InputError


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


LOCK_FILE = ".lock"


class FolderLock:
    r"""
    Keeps others from writing into a folder while this context lasts. The operating system holds the lock (`flock`), so that
    one whose process was killed is free again; the file says whose it is.

    Args:
        folder (`str` or `Path`): It must exist.

    Raises:
        InputError: Another process writes into the folder; names it.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self._file: IO[str] | None = None

    def acquire(self) -> None:
        file = open(self.folder / LOCK_FILE, "a+")  # noqa: SIM115  (closed by `release`)
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = " ".join(file.read().split()) or "another process"
                file.close()
                raise InputError(
                    f"{self.folder} is written to by {owner}; wait for its end, or use another folder"
                ) from None
            except OSError:  # some network file systems have no locks
                pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        file.flush()
        self._file = file

    def release(self) -> None:
        """The file stays: another process may be waiting with it open, and would lock a file that is no longer there."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> FolderLock:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()
