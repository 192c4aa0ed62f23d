"""Calls from several threads: every image equals the same call made alone, bit for bit."""

import concurrent_calls
import pytest


pytestmark = pytest.mark.slow


THREADS = 8

#: how many calls of each kind; `benchmarks/threads.py` makes more of them
COUNTS = {"one_pipeline": 96, "photos": 8, "sdxl_in_half_precision": 16}


@pytest.mark.parametrize("name", concurrent_calls.SETUPS)
def test_calls_from_threads_share_nothing(name):
    pipes, calls = concurrent_calls.SETUPS[name](COUNTS.get(name, 32))
    expected = [call(pipes[i % len(pipes)]) for i, call in enumerate(calls)]
    assert len({image.sum().item() for image in expected}) > len(calls) // 2
    for interval in (5e-3, 1e-5):
        assert concurrent_calls.wrong_calls(pipes, calls, expected, THREADS, interval) == []
