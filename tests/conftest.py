import os
import socket

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

import torch  # noqa: E402
from hub_server import HubServer  # noqa: E402


# tiny models run faster on one thread than on several
torch.set_num_threads(1)


@pytest.fixture
def hub(tmp_path):
    server = HubServer(tmp_path / "hub", HUB_PORT)
    yield server
    server.close()
