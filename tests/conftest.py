"""No network but a Hub on the loopback interface, and no cache of the user's."""

import os
import socket
import sys

import pytest


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# The Hub is on the loopback interface, and closed unless a test asks for `hub`: no test reaches for the network.
# huggingface_hub reads the address when it is imported.
HUB_PORT = _free_port()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{HUB_PORT}"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.pop("HF_HUB_OFFLINE", None)
# Sums of MKL then do not depend on where weights lie in memory, which on some processors changes their last bit:
# weights that were loaded compute what those that were saved do, bit for bit.
os.environ.setdefault("MKL_CBWR", "AVX2,STRICT")

import huggingface_hub.utils._http  # noqa: E402
import input_counts  # noqa: E402
import torch  # noqa: E402
from hub_server import HubServer  # noqa: E402


# a Hub that is closed stays so: to wait before another try is in vain
huggingface_hub.utils._http.http_backoff.__kwdefaults__["base_wait_time"] = 0

# tiny models run faster on one thread than on several
torch.set_num_threads(1)


def pytest_terminal_summary(terminalreporter):
    """What became of made-up and damaged inputs, of each kind. A test of which one gives a raw error fails."""
    if input_counts.ALL:
        reports = [report for report in terminalreporter.getreports("") if report.when == "teardown"]
        for line in input_counts.sums(report.capstdout for report in reports):
            terminalreporter.write_line(line)


@pytest.fixture
def hub(tmp_path):
    server = HubServer(tmp_path / "hub", HUB_PORT)
    yield server
    server.close()


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """What is downloaded without a `cache_dir` lies here, not in the user's cache."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def modules_cache(tmp_path, monkeypatch):
    """Code from a Hub is copied here, not into the user's cache."""
    monkeypatch.setattr("diffusers.utils.dynamic_modules_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr("sys.path", [*sys.path])
    for name in [name for name in sys.modules if name.split(".")[0] == "diffusers_modules"]:
        monkeypatch.delitem(sys.modules, name)
