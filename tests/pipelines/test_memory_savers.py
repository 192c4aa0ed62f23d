"""diffusers' ways to save memory, with a face and with a full or a small FFRNet: the image stays what it is."""

import copy

import pytest
import tiny
import torch
from accelerate import cpu_offload
from torch import nn


pytestmark = pytest.mark.slow

#: Largest difference of a pixel to the image with full weights, on average; 8 bits, and 4 in blocks of 64.
FLOAT8, INT8, FOUR_BITS = 0.03, 0.01, 0.06


@pytest.fixture(params=[None, 4], ids=["full", "small"])
def pipe(request):
    pipe = tiny.facesnap(tiny.sd_pipeline())
    torch.manual_seed(2)
    pipe.init_facesnap_adapter(
        tiny.adapter_config(image_encoder_id=None),
        mixer={"hidden_size": 32, "attention_head_dim": 8},
        ffrnet_rank=request.param,
    )
    for part in (pipe.ffrnet, pipe.identity_attention):
        for parameter in part.parameters():
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return pipe


def generate(pipe):
    return tiny.generate(pipe, identity=tiny.identity(image_features=False))


def check(pipe, expected, tolerance):
    """The image is near that with full weights, and a face changes it as it does there."""
    image = generate(pipe)
    assert 0 < (image - expected).abs().mean() < tolerance
    pipe.set_facesnap_scale(0.0, 0.0)
    plain = generate(pipe)
    pipe.set_facesnap_scale(1.0, 1.0)
    assert (image - plain).abs().mean() > 3 * (image - expected).abs().mean()


def with_weights(pipe, unet):
    """The pipeline with the weights of `unet` (name → tensor), plain ones."""
    twin = copy.deepcopy(pipe.unet)
    twin.load_state_dict(unet)
    ffrnet = copy.deepcopy(pipe.ffrnet)
    ffrnet.bind(twin)
    return tiny.facesnap(type(pipe).from_pipe(pipe, unet=twin, ffrnet=ffrnet))


def test_float8(pipe):
    expected, before = generate(pipe), with_weights(pipe, pipe.unet.state_dict())
    for net in (pipe.unet, pipe.ffrnet):
        net.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    assert pipe.unet.mid_block.resnets[0].conv1.weight.dtype == torch.float8_e4m3fn
    check(pipe, expected, FLOAT8)
    rounded = {
        name: {k: v.float() for k, v in getattr(pipe, name).state_dict().items()} for name in ("unet", "ffrnet")
    }
    before.unet.load_state_dict(rounded["unet"])
    before.ffrnet.load_state_dict(rounded["ffrnet"])
    torch.testing.assert_close(generate(pipe), generate(before), atol=1e-5, rtol=0)


def test_torchao(pipe):
    quantization = pytest.importorskip("torchao.quantization")
    expected, plain = generate(pipe), copy.deepcopy(pipe.unet)
    quantization.quantize_(pipe.unet, quantization.Int8WeightOnlyConfig())
    check(pipe, expected, INT8)
    weights = {
        name: tensor.dequantize() if type(tensor) not in (torch.Tensor, nn.Parameter) else tensor
        for name, tensor in pipe.unet.state_dict().items()
    }
    ffrnet = copy.deepcopy(pipe.ffrnet)
    plain.load_state_dict(weights)
    ffrnet.bind(plain)
    twin = tiny.facesnap(type(pipe).from_pipe(pipe, unet=plain, ffrnet=ffrnet))
    torch.testing.assert_close(generate(pipe), generate(twin), atol=1e-4, rtol=0)


def test_bitsandbytes(pipe):
    bitsandbytes = pytest.importorskip("bitsandbytes")
    expected = generate(pipe)
    for name, module in list(pipe.unet.named_modules()):
        if isinstance(module, nn.Linear):
            has_bias = module.bias is not None
            layer = bitsandbytes.nn.Linear4bit(module.in_features, module.out_features, has_bias, quant_type="nf4")
            layer.load_state_dict(module.state_dict())
            pipe.unet.set_submodule(name, layer.to("cpu"))
    pipe.ffrnet.bind(pipe.unet)
    assert pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.dtype == torch.uint8
    check(pipe, expected, FOUR_BITS)


@pytest.mark.parametrize("way", ["model", "sequence", "leaf_level", "block_level"])
def test_offloading(pipe, way):
    expected = generate(pipe)
    if way == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    elif way == "sequence":
        # as `enable_sequential_cpu_offload` does, but the text encoder: there accelerate fails where CPU and device are one
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module) and name not in ("text_encoder", *pipe._exclude_from_cpu_offload):
                cpu_offload(part, torch.device("cpu"), offload_buffers=len(part._parameters) > 0)
        assert pipe.unet.conv_in.weight.is_meta and all(p.is_meta for p in pipe.ffrnet.parameters())
    else:
        blocks = {"num_blocks_per_group": 1} if way == "block_level" else {}
        pipe.enable_group_offload(torch.device("cpu"), offload_type=way, **blocks)
    for _ in range(2):
        assert torch.equal(generate(pipe), expected)
    pipe.set_facesnap_schedule("fast")
    assert generate(pipe).isfinite().all()
