"""Calls that end with an error or Ctrl-C, at any place: nothing of them stays, and the next images are the same."""

import random
import signal
import time

import pytest
import shared_state
import tiny
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from facesnap_diffusers import Person


pytestmark = pytest.mark.slow


WHO = tiny.identity()
CALL = {"height": 32, "width": 32, "num_inference_steps": 1, "output_type": "pt"}
CALLS = {
    "face": {"identity": WHO},
    "people": {"people": [Person(WHO, (0.1, 0.1, 0.4, 0.6)), Person(tiny.identity(4), (0.6, 0.1, 0.9, 0.6))]},
    "plain": {},
}


class Stop(Exception):
    """Stands for any error of a call."""


@pytest.fixture(scope="module")
def pipe():
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    for name in CALLS:
        generate(pipe, name)  # transformers puts its hooks on the text encoder in the first call
    return pipe


def generate(pipe, name):
    return pipe("a cat", generator=tiny.seeded(), **CALLS[name], **CALL).images


def raise_at_module_call(pipe, name: str, number: int) -> bool:
    """Whether the call got as far as its `number`-th call of a module."""
    count = 0

    def stop(*args):
        nonlocal count
        count += 1
        if count == number:
            raise Stop

    handle = register_module_forward_pre_hook(stop)
    try:
        generate(pipe, name)
    except Stop:
        return True
    finally:
        handle.remove()
    return False


def interrupt_at(pipe, name: str, seconds: float) -> bool:
    """Whether Ctrl-C after this much processor time met the call before its end."""

    def interrupt(*args):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGVTALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
        generate(pipe, name)
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
    except KeyboardInterrupt:
        return True
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return False


def errors_everywhere(pipe, name: str, step: int) -> int:
    """Raises at every `step`-th call of a module; returns how often. Fails if anything stays."""
    expected, before = generate(pipe, name), shared_state.snapshot(pipe)
    number = 1
    while raise_at_module_call(pipe, name, number):
        assert shared_state.changes(before, shared_state.snapshot(pipe)) == [], f"after module call {number}"
        if (number - 1) % (10 * step) == 0:
            assert torch.equal(generate(pipe, name), expected), f"after module call {number}"
        number += step
    assert torch.equal(generate(pipe, name), expected)
    return (number - 1) // step


def interrupts_at_random_moments(pipe, name: str, count: int, seed: int = 0) -> int:
    """Ctrl-C at random moments; returns how many met the call. Fails if anything stays."""
    expected, before = generate(pipe, name), shared_state.snapshot(pipe)
    start = time.process_time()
    generate(pipe, name)
    duration = time.process_time() - start
    chosen, met = random.Random(seed), 0
    for number in range(count):
        met += interrupt_at(pipe, name, chosen.uniform(1e-4, duration))
        assert shared_state.changes(before, shared_state.snapshot(pipe)) == [], f"after interrupt {number}"
        if number % 10 == 0:
            assert torch.equal(generate(pipe, name), expected), f"after interrupt {number}"
    assert torch.equal(generate(pipe, name), expected)
    return met


@pytest.mark.parametrize("name", CALLS)
def test_an_error_leaves_nothing(pipe, name):
    assert errors_everywhere(pipe, name, step=41) > 5


@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_leaves_nothing(pipe, name):
    assert interrupts_at_random_moments(pipe, name, count=12) > 5
