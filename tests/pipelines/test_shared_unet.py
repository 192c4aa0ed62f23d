"""Calls of two pipelines on one UNet, interleaved step by step: right while they run, and right afterwards."""

import itertools
import os
import random
import threading

import pytest
import shared_state
import tiny
import torch

import facesnap_diffusers
from facesnap_diffusers import Person


pytestmark = pytest.mark.slow


STEPS = 2
#: The orders in which two calls can go on from step to step: `a` three times (to the end of each step, and out), `b` too.
ORDERS = ["".join("a" if i in of_a else "b" for i in range(6)) for of_a in itertools.combinations(range(6), 3)]
CLASSES = {
    "sd": ["FaceSnapPipeline", "FaceSnapImg2ImgPipeline", "FaceSnapInpaintPipeline"],
    "xl": ["FaceSnapXLPipeline", "FaceSnapXLImg2ImgPipeline", "FaceSnapXLInpaintPipeline"],
}
KINDS = ["text to image", "image to image", "inpainting", "people", "stock"]


class Turns:
    """Lets one thread run at a time, in a given order of turns."""

    def __init__(self, order: str):
        self.order, self.position, self.condition = order, 0, threading.Condition()

    def wait_for(self, name: str) -> None:
        with self.condition:
            assert self.condition.wait_for(lambda: self.order[self.position : self.position + 1] == name, timeout=60)

    def end(self) -> None:
        with self.condition:
            self.position += 1
            self.condition.notify_all()


class Participant:
    """One of the calls: with a person of its own, or of a stock pipeline."""

    def __init__(self, base, stock, kind: str, number: int):
        family = CLASSES["xl" if hasattr(base, "text_encoder_2") else "sd"]
        self.arguments = {"prompt": ["a cat", "a dog, by night"][number], "num_inference_steps": STEPS}
        self.arguments |= {"height": 32, "width": 32, "output_type": "pt"}
        if kind == "stock":
            self.pipe = stock
            return
        place = KINDS.index(kind) % 3
        self.pipe = tiny.facesnap(base, getattr(facesnap_diffusers, family[place]))
        self.pipe.set_facesnap_scale(identity_scale=[1.0, 0.4][number], landmark_scale=[0.5, 1.0][number])
        picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(number))
        if place > 0:
            self.arguments |= {"image": picture, "strength": 1.0}
        if place == 2:
            self.arguments["mask_image"] = torch.ones(1, 1, 32, 32)
        who = tiny.identity(10 + number)
        self.arguments |= {"people": [Person(who, (0.1, 0.1, 0.5, 0.6))]} if kind == "people" else {"identity": who}

    def __call__(self, turns: Turns | None = None, name: str = "") -> torch.Tensor:
        arguments = dict(self.arguments)
        if turns is not None:

            def hand_over(pipe, step, timestep, tensors):
                turns.end()
                turns.wait_for(name)
                return tensors

            arguments["callback_on_step_end"] = hand_over
            turns.wait_for(name)
        image = self.pipe(generator=torch.Generator().manual_seed(7), **arguments).images
        if turns is not None:
            turns.end()
        return image


def interleaved(a: Participant, b: Participant, order: str) -> dict[str, torch.Tensor]:
    """The images of both calls, made in turns."""
    turns, images, errors = Turns(order), {}, []

    def run(name, participant):
        try:
            images[name] = participant(turns, name)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=pair) for pair in (("a", a), ("b", b))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return images


def check_pair(base, stock, kinds: tuple[str, str], orders: list[str]) -> None:
    """Both calls equal the same calls made alone, in all these orders, and nothing that they share has changed."""
    a, b = (Participant(base, stock, kind, number) for number, kind in enumerate(kinds))
    plain = stock("a cat", num_inference_steps=1, generator=tiny.seeded(), output_type="pt").images
    expected = {"a": a(), "b": b()}
    before = [shared_state.snapshot(pipe) for pipe in (base, a.pipe, b.pipe)]
    for order in orders:
        images = interleaved(a, b, order)
        for name, image in images.items():
            assert torch.equal(image, expected[name]), (kinds, order, name)
    if "stock" not in kinds:  # which counts its steps in the scheduler that all share
        after = [shared_state.snapshot(pipe) for pipe in (base, a.pipe, b.pipe)]
        assert [shared_state.changes(*pair) for pair in zip(before, after, strict=True)] == [[], [], []]
    assert torch.equal(a(), expected["a"]) and torch.equal(b(), expected["b"])
    assert torch.equal(stock("a cat", num_inference_steps=1, generator=tiny.seeded(), output_type="pt").images, plain)


def bases(family: str):
    stock = tiny.sd_pipeline() if family == "sd" else tiny.xl_pipeline()
    base = tiny.facesnap(stock)
    tiny.add_adapter(base)
    return base, stock


PAIRS = [pair for pair in itertools.combinations_with_replacement(KINDS, 2) if pair != ("stock", "stock")]


@pytest.mark.parametrize("family", CLASSES)
def test_two_calls_on_one_unet(family):
    """In one order each; in every order with FACESNAP_TEST_ALL=1."""
    base, stock = bases(family)
    chosen = random.Random(0)
    for pair in PAIRS:
        check_pair(base, stock, pair, ORDERS if "FACESNAP_TEST_ALL" in os.environ else [chosen.choice(ORDERS)])


def test_two_calls_on_one_unet_in_every_order():
    check_pair(*bases("sd"), ("text to image", "stock"), ORDERS)


def test_the_adapter_may_leave_while_a_call_runs():
    """The call goes on with what it began with, and the next one is plain Stable Diffusion."""
    base, stock = bases("sd")
    call = Participant(base, stock, "text to image", 0)
    plain = stock("a cat", num_inference_steps=1, generator=tiny.seeded(), output_type="pt").images
    expected = call()

    def unload(pipe, step, timestep, tensors):
        call.pipe.unload_facesnap_adapter()
        return tensors

    call.arguments["callback_on_step_end"] = unload
    assert torch.equal(call(), expected)
    again = call.pipe("a cat", num_inference_steps=1, generator=tiny.seeded(), output_type="pt").images
    assert torch.equal(again, plain)


def test_a_lora_scale_of_a_call_is_its_own():
    """As in the stock pipeline, to the bit, without a change of what calls share."""
    from peft import LoraConfig, inject_adapter_in_model

    stock = tiny.sd_pipeline()
    torch.manual_seed(0)
    for net, targets in ((stock.unet, ["to_k", "to_v"]), (stock.text_encoder, ["q_proj", "v_proj"])):
        inject_adapter_in_model(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=targets), net)
    pipe = tiny.facesnap(stock)
    call = {"num_inference_steps": 2, "output_type": "pt", "cross_attention_kwargs": {"scale": 0.25}}
    given = dict(call["cross_attention_kwargs"])
    pipe.encode_prompt(
        "a cat", "cpu", 1, False, lora_scale=0.25
    )  # lets transformers put its hooks on the text encoder
    before = shared_state.snapshot(pipe)
    image = pipe("a cat", generator=tiny.seeded(), **call).images
    embeds = pipe.encode_prompt("a cat", "cpu", 1, False, lora_scale=0.25)[0]
    assert shared_state.changes(before, shared_state.snapshot(pipe)) == []
    assert call["cross_attention_kwargs"] == given
    assert torch.equal(image, stock("a cat", generator=tiny.seeded(), **call).images)
    assert torch.equal(embeds, stock.encode_prompt("a cat", "cpu", 1, False, lora_scale=0.25)[0])
    full = pipe("a cat", generator=tiny.seeded(), num_inference_steps=2, output_type="pt").images
    assert (full - image).abs().max() > 1e-3


def test_the_vae_of_sdxl_keeps_its_dtype_while_a_call_decodes():
    """The stock pipeline converts it to float32 and back, under the hands of everyone who uses it."""
    stock = tiny.xl_pipeline()
    stock.vae.register_to_config(force_upcast=True)
    stock.to(torch.float16)
    pipe = tiny.facesnap(stock)
    call = {"num_inference_steps": 1, "height": 32, "width": 32, "output_type": "pt"}
    expected = stock("a cat", generator=tiny.seeded(), **call).images
    dtypes = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda *args: dtypes.append(pipe.vae.dtype))
    image = pipe("a cat", generator=tiny.seeded(), **call).images
    handle.remove()
    assert torch.equal(image, expected)
    assert set(dtypes) == {torch.float16}
