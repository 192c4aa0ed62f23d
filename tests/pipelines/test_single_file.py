"""A checkpoint in the single-file format of the original Stable Diffusion code."""

import pytest
import tiny
import torch
from safetensors.torch import save_file

from facesnap_diffusers import (
    AutoFaceSnapPipeline,
    FaceSnapImg2ImgPipeline,
    FaceSnapPipeline,
    FaceSnapXLPipeline,
    InputError,
)


RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
OTHERS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}


def original_name(name: str, layers: int, attention_in_up: tuple[bool, ...]) -> str:
    """The name of a UNet tensor in the original code, for `layers` resnets a block."""
    head, _, tail = name.partition(".")
    for ours, theirs in OTHERS.items():
        if name.startswith(ours + "."):
            return "model.diffusion_model." + theirs + name[len(ours) :]
    if head == "mid_block":
        kind, index, rest = tail.split(".", 2)
        place = f"middle_block.{1 if kind == 'attentions' else 2 * int(index)}"
    else:
        block, kind, index, rest = tail.split(".", 3)
        block, index = int(block), int(index)
        if head == "down_blocks":
            number = (layers + 1) * block + (layers if kind == "downsamplers" else index) + 1
            place = f"input_blocks.{number}.{1 if kind == 'attentions' else 0}"
            rest = rest.replace("conv.", "op.") if kind == "downsamplers" else rest
        else:
            number = (layers + 1) * block + (layers if kind == "upsamplers" else index)
            slot = {"resnets": 0, "attentions": 1, "upsamplers": 2 if attention_in_up[block] else 1}[kind]
            place = f"output_blocks.{number}.{slot}"
    if kind == "resnets":
        part, _, leaf = rest.partition(".")
        rest = f"{RESNET[part]}.{leaf}"
    return f"model.diffusion_model.{place}.{rest}"


@pytest.mark.parametrize(
    ("cls", "base"),
    [
        (FaceSnapPipeline, tiny.sd_pipeline),
        (FaceSnapImg2ImgPipeline, tiny.sd_pipeline),
        (FaceSnapXLPipeline, tiny.xl_pipeline),
    ],
)
def test_from_single_file(cls, base, tmp_path):
    stock = base()
    stock.save_pretrained(tmp_path / "config")
    state = {original_name(name, 1, (True, False)): tensor for name, tensor in stock.unet.state_dict().items()}
    save_file(state, tmp_path / "checkpoint.safetensors")

    others = {name: part for name, part in stock.components.items() if name not in ("unet", "scheduler")}
    pipe = cls.from_single_file(str(tmp_path / "checkpoint.safetensors"), config=str(tmp_path / "config"), **others)
    assert stock.unet.state_dict().keys() == pipe.unet.state_dict().keys()
    for name, tensor in stock.unet.state_dict().items():
        assert torch.equal(tensor, pipe.unet.state_dict()[name]), name
    tiny.add_adapter(pipe)
    call = {"num_inference_steps": 2, "output_type": "pt"}
    if cls is FaceSnapImg2ImgPipeline:
        call["image"] = torch.rand(1, 3, 64, 64)
    image = pipe("a cat", identity=tiny.identity(), **call).images
    assert image.shape == (1, 3, 64, 64) and image.isfinite().all()


def test_the_automatic_class_and_the_other_family(tmp_path):
    stock = tiny.sd_pipeline()
    stock.save_pretrained(tmp_path / "config")
    state = {original_name(name, 1, (True, False)): tensor for name, tensor in stock.unet.state_dict().items()}
    save_file(state, tmp_path / "sd.safetensors")
    others = {name: part for name, part in stock.components.items() if name not in ("unet", "scheduler")}
    options = {"config": str(tmp_path / "config"), **others}
    pipe = AutoFaceSnapPipeline.from_single_file(tmp_path / "sd.safetensors", task="image-to-image", **options)
    assert type(pipe) is FaceSnapImg2ImgPipeline
    assert torch.equal(pipe.unet.conv_in.weight, stock.unet.conv_in.weight)

    # what tells checkpoints of SDXL
    name = "conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"
    save_file({name: torch.zeros(1280)}, tmp_path / "xl.safetensors")
    with pytest.raises(InputError, match="Stable Diffusion XL, FaceSnapPipeline takes .* use FaceSnapXLPipeline"):
        FaceSnapPipeline.from_single_file(str(tmp_path / "xl.safetensors"), config=str(tmp_path / "nowhere"))
