"""What a call has of its own: nothing of it stays on what calls share."""

import pickle

import pytest
import shared_state
import tiny
import torch
from peft import LoraConfig, inject_adapter_in_model
from transformers import CLIPImageProcessor

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


def add_lora(pipe):
    """A LoRA of the UNet and one of the text encoder, both with random weights."""
    torch.manual_seed(0)
    for net, targets in ((pipe.unet, ["to_k", "to_q"]), (pipe.text_encoder, ["q_proj", "v_proj"])):
        config = LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=targets)
        inject_adapter_in_model(config, net)


@pytest.fixture
def lora_pipe():
    pipe = tiny.with_adapter(tiny.sd_pipeline())
    add_lora(pipe)
    return pipe


def interrupted(module, call):
    """Makes a call that gets Ctrl-C when `module` is to compute."""

    def interrupt(*args):
        raise KeyboardInterrupt

    handle = module.register_forward_pre_hook(interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            call()
    finally:
        handle.remove()


@pytest.mark.parametrize("who", [{}, {"identity": tiny.identity()}], ids=["plain", "face"])
@pytest.mark.parametrize("scale", [0.3, 0.0])
def test_ctrl_c_leaves_the_scales_of_a_lora_on_offloaded_nets(lora_pipe, who, scale):
    """Offloaded nets cannot be copied, so the stock call scales the LoRA layers of the shared ones."""
    for module in lora_pipe.text_encoder.modules():
        if isinstance(getattr(module, "scaling", None), dict):
            module.scaling["default"] = 0.7  # as `set_adapters` sets it
    lora_pipe.enable_model_cpu_offload(device="cpu")
    call = {"num_inference_steps": 1, **who}
    expected, before = tiny.generate(lora_pipe, **call), scalings(lora_pipe)
    scaled = {"cross_attention_kwargs": {"scale": scale}}
    interrupted(lora_pipe.text_encoder, lambda: tiny.generate(lora_pipe, **call, **scaled))
    assert scalings(lora_pipe) == before
    interrupted(lora_pipe.text_encoder, lambda: lora_pipe.encode_prompt("a cat", "cpu", 1, False, lora_scale=scale))
    assert scalings(lora_pipe) == before
    assert not torch.equal(tiny.generate(lora_pipe, **call, **scaled), expected)
    assert scalings(lora_pipe) == before
    assert torch.equal(tiny.generate(lora_pipe, **call), expected)


def scalings(pipe):
    """The scale of each LoRA layer of a pipeline."""
    nets = (pipe.text_encoder, pipe.unet)
    return [dict(m.scaling) for net in nets for m in net.modules() if isinstance(getattr(m, "scaling", None), dict)]


def test_a_lora_scale_reaches_layers_that_are_compiled_in_place(lora_pipe):
    """`module.compile()` binds the compiled call to the module: a copy would compute with the original's scale."""
    call = {"num_inference_steps": 1, "identity": tiny.identity(), "cross_attention_kwargs": {"scale": 0.3}}
    expected = tiny.generate(lora_pipe, **call)
    block = next(m for m in lora_pipe.unet.modules() if isinstance(getattr(m, "scaling", None), dict))
    block.compile(backend="eager")
    assert torch.equal(tiny.generate(lora_pipe, **call), expected)


def half_xl():
    pipe = tiny.with_adapter(tiny.xl_pipeline())
    pipe.vae.register_to_config(force_upcast=True)
    return pipe.to(torch.float16)


def test_ctrl_c_leaves_the_dtype_of_an_offloaded_autoencoder():
    pipe = half_xl()
    pipe.enable_model_cpu_offload(device="cpu")
    call = {"identity": tiny.identity(), "num_inference_steps": 1, "height": 32, "width": 32}
    expected = tiny.generate(pipe, **call)
    interrupted(pipe.vae.decoder, lambda: tiny.generate(pipe, **call))
    assert {parameter.dtype for parameter in pipe.vae.parameters()} == {torch.float16}
    assert torch.equal(tiny.generate(pipe, **call), expected)


def test_an_autoencoder_with_a_compiled_method():
    """A copy's `decode` would be the original's, in another dtype."""
    pipe = half_xl()
    call = {"identity": tiny.identity(), "num_inference_steps": 1, "height": 32, "width": 32}
    expected, decode, seen = tiny.generate(pipe, **call), pipe.vae.decode, []

    def compiled(*args, **kwargs):  # as `pipe.vae.decode = torch.compile(pipe.vae.decode)` puts it there
        seen.append(pipe.vae.dtype)
        return decode(*args, **kwargs)

    pipe.vae.decode = compiled
    assert torch.equal(tiny.generate(pipe, **call), expected)
    assert seen == [torch.float32] and pipe.vae.dtype == torch.float16


def test_unpickled_pipelines_have_an_ffrnet_that_is_bound():
    pipe = tiny.facesnap(tiny.sd_pipeline())
    pipe.init_facesnap_adapter(
        tiny.adapter_config(),
        ffrnet_rank=2,
        mixer={"hidden_size": 32, "num_layers": 1, "attention_head_dim": 8},
        image_encoder=tiny.image_encoder(),
        image_processor=CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}),
    )
    for parameter in pipe.ffrnet.parameters():
        parameter.data.add_(0.1)
    before = shared_state.snapshot(pipe)
    again = pickle.loads(pickle.dumps(pipe))
    assert again.ffrnet.is_bound_to(again.unet)
    assert shared_state.changes(before, shared_state.snapshot(pipe)) == []
    call = {"identity": tiny.identity(), "num_inference_steps": 1}
    assert torch.equal(tiny.generate(again, **call), tiny.generate(pipe, **call))
