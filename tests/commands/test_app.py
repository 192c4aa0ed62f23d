"""`facesnap app`, as far as the page."""

import inspect
import socket

import pytest
import torch
from command_line import command

from facesnap_diffusers import InputError
from facesnap_diffusers.commands.app import app
from facesnap_diffusers.commands.generate import generate
from facesnap_diffusers.faces.photo import photo_policy, set_photo_policy


pytest.importorskip("gradio")


def test_device_and_dtype_are_chosen_as_by_generate():
    of_app, of_generate = (inspect.signature(command).parameters for command in (app, generate))
    for name in ("device", "dtype"):
        assert of_app[name].default is None and of_generate[name].default is None
    with pytest.raises(InputError, match="device 'gpu' cannot be used here"):
        command("app", "--device", "gpu")


@pytest.fixture
def own_policy():
    """The app sets what photos may be, for its process."""
    before = photo_policy()
    yield
    set_photo_policy(before)


@pytest.mark.slow
def test_without_options_it_comes_as_far_as_the_port(own_policy):
    with (
        socket.create_server(("127.0.0.1", 0)) as taken,
        pytest.raises(InputError, match="port .* cannot be used"),
    ):
        command("app", "--port", taken.getsockname()[1])


@pytest.mark.slow
def test_the_nano_model_takes_a_dtype():
    from facesnap_diffusers.app.server import nano_studio

    assert nano_studio("cpu", torch.bfloat16).pipe.unet.dtype == torch.bfloat16
