"""An adapter whose FFRNet shares the layers of the base model."""

import pytest
import tiny
import torch

from facesnap_diffusers import AdapterError, FaceSnapPipeline


STEPS = {"num_inference_steps": 2, "output_type": "pt", "height": tiny.SIZE, "width": tiny.SIZE}


@pytest.fixture(scope="module", params=["sd", "xl"])
def pipe(request):
    pipe = tiny.facesnap(tiny.sd_pipeline() if request.param == "sd" else tiny.xl_pipeline())
    torch.manual_seed(2)
    pipe.init_facesnap_adapter(
        tiny.adapter_config(image_encoder_id=None), mixer={"hidden_size": 32, "attention_head_dim": 8}, ffrnet_rank=4
    )
    for parameter in pipe.ffrnet.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return pipe


def generate(pipe, **kwargs):
    call = {"identity": tiny.identity(image_features=False), "generator": tiny.seeded(), **STEPS, **kwargs}
    return pipe("a cat", **call).images


def test_is_the_controlnet_with_the_summed_weights(pipe):
    full = type(pipe).from_pipe(pipe, ffrnet=pipe.ffrnet.to_full())
    full.set_progress_bar_config(disable=True)
    tiny.assert_same_image(generate(pipe), generate(full), atol=1e-5)
    pipe.set_facesnap_scale(landmark_scale=0.0)
    without = generate(pipe)
    pipe.set_facesnap_scale(landmark_scale=1.0)
    assert (generate(pipe) - without).abs().max() > 1e-3


def test_saved_and_loaded(pipe, tmp_path):
    pipe.save_facesnap_adapter(tmp_path)
    again = tiny.facesnap(pipe)
    again.unload_facesnap_adapter()
    again.load_facesnap_adapter(tmp_path)
    assert again.ffrnet.config.rank == 4 and torch.equal(generate(again), generate(pipe))


def test_in_half_precision_on_a_base_in_full(pipe, tmp_path):
    pipe.save_facesnap_adapter(tmp_path)
    half = tiny.facesnap(pipe)
    half.unload_facesnap_adapter()
    half.load_facesnap_adapter(tmp_path, dtype=torch.bfloat16)
    assert half.ffrnet.dtype == half.identity_attention.dtype == torch.bfloat16
    difference = (generate(half) - generate(pipe)).abs().max()
    assert 0 < difference < 0.05


def test_saved_with_the_whole_pipeline(tmp_path):
    pipe = tiny.facesnap(tiny.sd_pipeline())
    pipe.init_facesnap_adapter(
        tiny.adapter_config(image_encoder_id=None), mixer={"hidden_size": 32, "attention_head_dim": 8}, ffrnet_rank=4
    )
    for parameter in pipe.ffrnet.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    pipe.save_pretrained(tmp_path)
    again = FaceSnapPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert again.ffrnet.config.rank == 4 and torch.equal(generate(again), generate(pipe))


def test_fast(pipe):
    """As the ControlNet with the summed weights."""
    call = {"num_inference_steps": 12, "facesnap_schedule": "fast"}
    full = type(pipe).from_pipe(pipe, ffrnet=pipe.ffrnet.to_full())
    full.set_progress_bar_config(disable=True)
    tiny.assert_same_image(generate(pipe, **call), generate(full, **call), atol=1e-4)


def test_another_unet_is_the_one_that_is_shared():
    pipe = tiny.facesnap(tiny.sd_pipeline())
    pipe.init_facesnap_adapter(
        tiny.adapter_config(image_encoder_id=None), mixer={"hidden_size": 32, "attention_head_dim": 8}, ffrnet_rank=4
    )
    for parameter in pipe.ffrnet.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    before = generate(pipe)
    unet = tiny.sd_pipeline(seed=7).unet
    other = tiny._quiet(FaceSnapPipeline.from_pipe(pipe, unet=unet))
    assert other.ffrnet.is_bound_to(unet) and pipe.ffrnet.is_bound_to(pipe.unet)
    full = tiny._quiet(FaceSnapPipeline.from_pipe(other, ffrnet=other.ffrnet.to_full()))
    tiny.assert_same_image(generate(other), generate(full), atol=1e-5)
    assert torch.equal(generate(pipe), before)
    assert tiny.facesnap(pipe).ffrnet is pipe.ffrnet


def test_another_unet_that_the_adapter_does_not_fit():
    pipe = tiny.with_adapter(tiny.sd_pipeline())
    for changes in ({"cross_attention_dim": 16}, {"block_out_channels": (32, 32)}):
        with pytest.raises(AdapterError, match="base model|unet"):
            FaceSnapPipeline.from_pipe(pipe, unet=tiny.sd_unet(**changes))
