"""Pipelines in the shapes of Stable Diffusion 1.5 and XL with random weights, and the calls whose costs are compared."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from facesnap_diffusers import FaceIdentity, FaceSnapConfig, FaceSnapPipeline, FaceSnapXLPipeline, FFRNet
from facesnap_diffusers.base_models import UNET_CONFIGS
from facesnap_diffusers.pipelines.call_copy import copy_modules


sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
import third_party
import tiny


NUM_TOKENS = 16
FACE_WIDTH = 512
#: The rows of the tables, in their order.
ROWS = (
    "plain",
    "IP-Adapter FaceID",
    "ControlNet",
    "both",
    "FaceSnap exact",
    "FaceSnap fast",
    "FaceSnap fast, small FFRNet",
)


def unet_config(family: str, width: float = 1.0) -> dict[str, Any]:
    """That of a family, with channels by the factor `width`: 1, 0.5, 0.25, or 0.1 for tests."""
    config = {**UNET_CONFIGS[family], "norm_num_groups": 32 if width >= 0.5 else 16}
    channels = config.get("block_out_channels", (320, 640, 1280, 1280))
    config["block_out_channels"] = tuple(round(width * value) for value in channels)
    if width < 0.25:
        config["attention_head_dim"] = 4
    return config


def rank_of(width: float) -> int:
    """Of the small FFRNet: 128 at full width."""
    return round(128 * width)


def base_pipeline(
    family: str, width: float = 1.0, device: str = "cpu", dtype: torch.dtype = torch.float32, text_layers: int = 1
) -> Any:
    """A stock pipeline with random weights; the text encoders have the right widths, and so many layers."""
    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel(**unet_config(family, width)).to(dtype).eval()
        vae = AutoencoderKL(
            block_out_channels=tuple(max(32, round(width * value)) for value in (128, 256, 512, 512)),
            norm_num_groups=32 if width >= 0.25 else 1,
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            layers_per_block=2,
            latent_channels=4,
            force_upcast=False,
        )
        vae = vae.to(dtype).eval()
        parts = {
            "vae": vae,
            "unet": unet,
            "tokenizer": tiny.tokenizer(),
            "scheduler": tiny.scheduler(),
            "text_encoder": CLIPTextModel(_text_config(768, text_layers)).to(dtype).eval(),
        }
        if family == "sdxl":
            second = CLIPTextModelWithProjection(_text_config(1280, text_layers)).to(dtype).eval()
            pipe = StableDiffusionXLPipeline(
                **parts, text_encoder_2=second, tokenizer_2=tiny.tokenizer(), add_watermarker=False
            )
        else:
            pipe = StableDiffusionPipeline(
                **parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False
            )
    return _quiet(pipe)


def facesnap(base: Any, rank: int | None = None) -> Any:
    """A FaceSnap pipeline on the components of a stock one, with a random adapter that changes the image."""
    cls = FaceSnapXLPipeline if hasattr(base, "text_encoder_2") else FaceSnapPipeline
    pipe = _quiet(cls.from_pipe(base))
    config = FaceSnapConfig(
        face_encoder_id="random/recognizer", face_embed_dim=FACE_WIDTH, image_encoder_id=None, num_tokens=NUM_TOKENS
    )
    torch.manual_seed(1)
    small = {"hidden_size": 64, "num_layers": 1, "attention_head_dim": 32}
    is_small = base.unet.config.block_out_channels[0] < 80
    pipe.init_facesnap_adapter(config, mixer=small if is_small else None, ffrnet_rank=rank)
    wake(pipe.ffrnet)
    return pipe


@torch.no_grad()
def wake(net: ControlNetModel) -> None:
    """Gives values to the zero convolutions of a ControlNet: of a size that changes the image and keeps it an image."""
    for layer in (net.controlnet_cond_embedding.conv_out, net.controlnet_down_blocks, net.controlnet_mid_block):
        for parameter in layer.parameters():
            parameter.normal_(std=0.3 * parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.01)


def person() -> FaceIdentity:
    """A made-up one."""
    generator = torch.Generator().manual_seed(3)
    return FaceIdentity(
        face_embeds=torch.nn.functional.normalize(torch.randn(FACE_WIDTH, generator=generator), dim=0),
        face_encoder_id="random/recognizer",
        landmarks=tiny.face_points(),
        photo_size=(100, 120),
    )


def calls(
    base: Any, side: int, steps: int, rank: int, rows: tuple[str, ...] = ROWS, **kwargs: Any
) -> dict[str, Callable[[], Any]]:
    """
    Whole calls with guidance, one for each row; their pipelines share the UNet's weights. The rivals are diffusers' own
    IP-Adapter and ControlNet.
    """
    device, dtype = base.unet.device, base.unet.dtype
    call = {
        "num_inference_steps": steps,
        "guidance_scale": 7.0,
        "height": side,
        "width": side,
        "output_type": "latent",
        **kwargs,
    }
    is_xl = hasattr(base, "text_encoder_2")
    plain_class = StableDiffusionXLPipeline if is_xl else StableDiffusionPipeline
    control_class = StableDiffusionXLControlNetPipeline if is_xl else StableDiffusionControlNetPipeline
    ours, control = facesnap(base), torch.rand(1, 3, side, side)
    small = _small(ours, rank)
    controlnet = ControlNetModel.from_config(ours.ffrnet.config).to(device, dtype).eval()
    controlnet.load_state_dict(ours.ffrnet.state_dict())
    face = torch.randn(2, 1, FACE_WIDTH, device=device, dtype=dtype)

    def stock(with_face: bool, with_control: bool) -> Callable[[], Any]:
        cls, unet = (control_class if with_control else plain_class), copy_modules(base.unet)
        nets = {"controlnet": controlnet} if with_control else {}
        pipe = _quiet(cls(**{**base.components, "unet": unet, **nets}, **_flags(is_xl)))
        given = {"image": control} if with_control else {}
        if with_face:
            with torch.device(device):
                weights = third_party.faceid(unet, NUM_TOKENS, lora_rank=0, face_width=FACE_WIDTH)
            pipe.load_ip_adapter(weights, subfolder="", weight_name="", image_encoder_folder=None)
            given["ip_adapter_image_embeds"] = [face]
        return lambda: pipe("a person", generator=tiny.seeded(), **given, **call)

    def with_facesnap(pipe: Any, schedule: str) -> Callable[[], Any]:
        return lambda: pipe("a person", identity=person(), facesnap_schedule=schedule, generator=tiny.seeded(), **call)

    made = {
        "plain": lambda: stock(False, False),
        "IP-Adapter FaceID": lambda: stock(True, False),
        "ControlNet": lambda: stock(False, True),
        "both": lambda: stock(True, True),
        "FaceSnap exact": lambda: with_facesnap(ours, "exact"),
        "FaceSnap fast": lambda: with_facesnap(ours, "fast"),
        "FaceSnap fast, small FFRNet": lambda: with_facesnap(small, "fast"),
    }
    return {row: made[row]() for row in rows}


def _small(ours: Any, rank: int) -> Any:
    """The same pipeline with a small FFRNet."""
    small = FFRNet.from_unet(ours.unet, rank=rank).eval()
    wake(small)
    return _quiet(type(ours).from_pipe(ours, ffrnet=small))


def _flags(is_xl: bool) -> dict[str, Any]:
    return {"add_watermarker": False} if is_xl else {"requires_safety_checker": False}


def _text_config(width: int, layers: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=100,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        projection_dim=width,
        bos_token_id=0,
        eos_token_id=1,
    )


def _quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe
