"""Calls from several threads: every image equals the same call made alone, bit for bit."""

import io
from concurrent.futures import ThreadPoolExecutor

import concurrent_calls
import numpy as np
import PIL.Image
import pytest
from skimage.data import astronaut

from facesnap_diffusers.faces.photo import load_photo


pytestmark = pytest.mark.slow


THREADS = 8

#: how many calls of each kind; `benchmarks/threads.py` makes more of them
COUNTS = {"one_pipeline": 32, "photos": 4, "sdxl_in_half_precision": 8}


@pytest.mark.parametrize("name", concurrent_calls.SETUPS)
def test_calls_from_threads_share_nothing(name):
    pipes, calls = concurrent_calls.SETUPS[name](COUNTS.get(name, 16))
    expected = [call(pipes[i % len(pipes)]) for i, call in enumerate(calls)]
    assert len({image.sum().item() for image in expected}) > len(calls) // 2
    for interval in (5e-3, 1e-5):
        assert concurrent_calls.wrong_calls(pipes, calls, expected, THREADS, interval) == []


def test_an_opened_image_in_several_threads():
    """Its pixels are still in the file when the calls begin."""
    file = io.BytesIO()
    PIL.Image.fromarray(astronaut()).save(file, format="PNG")
    with concurrent_calls.switch_interval(1e-5), ThreadPoolExecutor(THREADS) as pool:
        for _ in range(5):
            image = PIL.Image.open(io.BytesIO(file.getvalue()))
            for pixels in pool.map(load_photo, [image] * THREADS):
                assert np.array_equal(pixels, astronaut())
