"""What a call has of its own: nothing of it stays on what calls share."""

import pytest
import tiny
import torch

from facesnap_diffusers import FaceSnapXLImg2ImgPipeline, HeadPose, InputError, Person


BASES = {"sd": tiny.sd_pipeline, "xl": tiny.xl_pipeline}
#: arguments for which a call runs on copies of the text encoders
COPIES = [{"clip_skip": 1}, {"cross_attention_kwargs": {"scale": 0.5}}]


@pytest.mark.parametrize("family", BASES)
@pytest.mark.parametrize("arguments", COPIES, ids=lambda arguments: next(iter(arguments)))
def test_the_first_call_leaves_no_hooks_on_the_text_encoder(family, arguments):
    """transformers hangs hooks onto layers at the first call that asks for hidden states, and marks the model."""
    call = {"identity": tiny.identity(), "num_inference_steps": 2}
    expected = tiny.generate(tiny.with_adapter(BASES[family]()), **call)
    base = BASES[family]()
    stock = tiny.generate(BASES[family](), num_inference_steps=2)
    pipe = tiny.with_adapter(base)
    first, second = (tiny.generate(pipe, **call, **arguments) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(tiny.generate(pipe, **call), expected)
    assert torch.equal(tiny.generate(base, num_inference_steps=2), stock)
    layers = base.text_encoder.config.num_hidden_layers
    states = base.text_encoder(torch.tensor([[0, 3, 1]]), output_hidden_states=True).hidden_states
    assert len(states) == layers + 1


def test_a_failing_call_leaves_the_dtype_of_sdxl_s_autoencoder():
    pipe = tiny.with_adapter(tiny.xl_pipeline(), FaceSnapXLImg2ImgPipeline)
    pipe.text_encoder.half()
    pipe.text_encoder_2.half()
    with pytest.raises(RuntimeError):
        tiny.generate(pipe, identity=tiny.identity(), image=tiny.picture(), strength=1.0)
    assert pipe.vae.dtype == torch.float32


@pytest.mark.parametrize("name", ["control_guidance_start", "control_guidance_end"])
def test_windows_of_controlnets_that_are_not_there(name):
    pipe = tiny.with_adapter(tiny.sd_pipeline())
    with pytest.raises(InputError, match=f"{name}= is for further ControlNets"):
        tiny.generate(pipe, identity=tiny.identity(), **{name: 0.5})


def test_a_person_has_one_pose():
    pipe = tiny.with_adapter(tiny.sd_pipeline())
    person = Person(tiny.identity(), (0.1, 0.1, 0.5, 0.5), pose=[HeadPose(), HeadPose(yaw=30)])
    with pytest.raises(InputError, match=r"people\[0\]: pose must be one"):
        tiny.generate(pipe, people=[person])


def test_cross_attention_kwargs_are_a_dict():
    pipe = tiny.with_adapter(tiny.sd_pipeline())
    with pytest.raises(InputError, match="cross_attention_kwargs must be a dict"):
        tiny.generate(pipe, identity=tiny.identity(), cross_attention_kwargs="x")
