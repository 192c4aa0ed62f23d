"""What a call takes of a device's memory: weights and peak, counted on shapes alone for each of diffusers' ways to save some."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from .adapter.config import FaceSnapConfig
from .base_models import UNET_CONFIGS, empty_unet, is_sdxl
from .errors import InputError, one_line
from .models.attention import IdentityAttention
from .models.ffrnet import FFRNet
from .models.landmark_predictor import load_landmark_predictor
from .models.mixer import FacialAttributeMixer


#: Of CLIP ViT-L/14, OpenCLIP ViT-H/14 (its last layer is left out) and OpenCLIP ViT-bigG/14.
_TEXT_ENCODERS = {
    "l": CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12),
    "h": CLIPTextConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=23, num_attention_heads=16),
    "g": CLIPTextConfig(
        hidden_size=1280, intermediate_size=5120, num_hidden_layers=32, num_attention_heads=20, projection_dim=1280
    ),
}
_TEXT_ENCODERS_OF = {"sd1": ("l",), "sd2": ("h",), "sdxl": ("l", "g")}
#: Bytes for each weight of a linear layer, with what its scales take: a float16 for each row, a float32 for each 64 weights.
_INT8, _NF4 = 1.0, 0.5 + 4 / 64


@dataclass(frozen=True)
class Mode:
    r"""
    What one way to keep the weights takes, in bytes.

    Attributes:
        name (`str`): As in the table.
        weights (`float`): Of all nets, wherever they lie.
        peak (`float`): At most on the device at once: the weights that are there, and the intermediate results.
    """

    name: str
    weights: float
    peak: float


class Nets:
    r"""
    The nets of a base model and of a fresh adapter, in half precision on the meta device.

    Args:
        base (`str`): `"sd1"`, `"sd2"`, `"sdxl"`, or a folder or Hub repo in the layout of diffusers.
        ffrnet_rank (`int`, *optional*): Of a small FFRNet.

    Raises:
        InputError: `base` is neither, or is not a Stable Diffusion model.
    """

    def __init__(self, base: str, ffrnet_rank: int | None = None):
        self.unet, self.text_encoders, self.vae = _base_nets(base)
        self.is_xl = is_sdxl(self.unet)
        with torch.device("meta"):
            self.ffrnet = FFRNet.from_unet(self.unet, rank=ffrnet_rank)
            width = self.unet.config.cross_attention_dim
            self.mixer = FacialAttributeMixer(width, num_tokens=FaceSnapConfig().num_tokens)
            self.identity_attention = IdentityAttention.from_unet(self.unet)
        for net in (self.unet, self.ffrnet, self.mixer, self.identity_attention, *self.text_encoders):
            net.half().eval()
        # SDXL's autoencoder overflows in half precision: the stock pipelines decode in float32
        if not (self.is_xl and self.vae.config.get("force_upcast")):
            self.vae.half()
        self.vae.eval()
        self.landmark_predictor = load_landmark_predictor()

    def on_device_in_denoising(self) -> list[nn.Module]:
        """What a step of the denoising loop computes with."""
        return [self.unet, self.ffrnet, self.identity_attention]

    def all(self) -> list[nn.Module]:
        """All nets."""
        return [
            *self.on_device_in_denoising(),
            *self.text_encoders,
            self.vae,
            self.mixer,
            self.landmark_predictor,
        ]

    def step_peak(self, side: int, batch: int) -> int:
        """Bytes of intermediate results of a denoising step: FFRNet, then the UNet with its residuals."""
        size, width, tokens = side // 8, self.unet.config.cross_attention_dim, FaceSnapConfig().num_tokens
        context = self.identity_attention.context(self.unet, tokens)
        dtype = next(parameter for parameter in self.ffrnet.parameters()).dtype
        with torch.device("meta"):
            noise = torch.empty(batch, 4, size, size, dtype=dtype)
            text, picture = (
                torch.empty(batch, 77 + tokens, width, dtype=dtype),
                torch.empty(batch, 3, side, side, dtype=dtype),
            )
            added = None
            if self.is_xl:
                added = {
                    "text_embeds": torch.empty(batch, 1280, dtype=dtype),
                    "time_ids": torch.empty(batch, 6, dtype=dtype),
                }
            timestep = torch.tensor(500)

            def step() -> None:
                down, mid = self.ffrnet(noise, timestep, text[:, 77:], picture, added_cond_kwargs=added)[:2]
                self.unet(
                    noise,
                    timestep,
                    text,
                    added_cond_kwargs=added,
                    cross_attention_kwargs=context.as_kwargs(),
                    down_block_additional_residuals=down,
                    mid_block_additional_residual=mid,
                )

            return peak_bytes(step)

    def decode_peak(self, side: int, images: int) -> int:
        """Bytes of intermediate results of decoding."""
        size, channels = side // 8, self.vae.config.latent_channels
        latents = torch.empty(images, channels, size, size, device="meta", dtype=self.vae.dtype)
        return peak_bytes(lambda: self.vae.decode(latents))


def count_modes(base: str, side: int | None = None, images: int = 1, ffrnet_rank: int | None = None) -> list[Mode]:
    r"""
    Weights and peak of a call with a face and guidance, for each way to keep the weights. Not counted are what CUDA itself
    takes (0.3 to 0.6 GB), fragmentation, face analyzers, image encoders and a safety checker.

    Args:
        base (`str`), ffrnet_rank (`int`, *optional*): See [`Nets`].
        side (`int`, *optional*): Height and width of the images in pixels; the base model's own by default.
        images (`int`): In one batch.

    Returns:
        `list[Mode]`: From the plainest to the one that takes least.
    """
    nets = Nets(base, ffrnet_rank)
    side = side or 8 * nets.unet.config.sample_size
    if side % 64 or images < 1:
        raise InputError(f"side must be a multiple of 64, images at least 1, got {side} and {images}")
    step, decode = nets.step_peak(side, 2 * images), nets.decode_peak(side, images)
    everything, denoising = sum(map(_bytes, nets.all())), sum(map(_bytes, nets.on_device_in_denoising()))
    text, vae = max(map(_bytes, nets.text_encoders)), _bytes(nets.vae)
    largest = max(_largest_layer(net) for net in nets.all())

    def on_device(weights: float, scale: float = 1.0) -> float:
        return weights + max(scale * step, scale * decode)

    kept = _bytes(nets.identity_attention) + _bytes(nets.landmark_predictor)  # on the device for good

    def by_model(denoising: float, ffrnet: float) -> float:
        # FFRNet, which no other net follows, stays until the end of the call
        return max(kept + text, denoising + step, kept + ffrnet + vae + decode)

    unet, ffrnet = _bytes(nets.unet), _bytes(nets.ffrnet)
    int8, nf4 = (_linear_bytes(nets.unet, size) for size in (_INT8, _NF4))
    # intermediate results are in the dtype of the nets, and the autoencoder may be in float32 already
    full = sum(_numbers(net) for net in nets.all()) * 4
    decode_full = decode * 4 / nets.vae.dtype.itemsize
    modes = [
        Mode("float32", full, full + max(2 * step, decode_full)),
        Mode("float16", everything, on_device(everything)),
        Mode("UNet in int8 (torchao)", everything - unet + int8, on_device(everything - unet + int8)),
        Mode("UNet in 4 bits (bitsandbytes)", everything - unet + nf4, on_device(everything - unet + nf4)),
        Mode("offload by model", everything, by_model(denoising, ffrnet)),
        Mode("offload by model, UNet in 4 bits", everything - unet + nf4, by_model(denoising - unet + nf4, ffrnet)),
    ]
    for net in (nets.unet, nets.ffrnet):
        net.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float16)
    saved = unet + ffrnet - _bytes(nets.unet) - _bytes(nets.ffrnet)
    modes[2:2] = [Mode("UNet and FFRNet in float8", everything - saved, on_device(everything - saved))]
    modes += [
        Mode("offload by model, float8", everything - saved, by_model(denoising - saved, _bytes(nets.ffrnet))),
        Mode("offload by group or sequence", everything, kept + largest + max(step, decode)),
    ]
    return modes


class _LiveBytes(TorchDispatchMode):
    """Bytes of the tensors that are alive within this context, and the most that there were."""

    def __init__(self) -> None:
        super().__init__()
        self.live: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        given = {storage._cdata for storage in _storages((args, kwargs))}  # of weights; views of them are not new
        for storage in _storages(result):
            key = storage._cdata
            if key not in given and key not in self.live:
                self.live[key] = storage.nbytes()
                self.now += storage.nbytes()
                weakref.finalize(storage, self._free, key)
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, key: int) -> None:
        self.now -= self.live.pop(key, 0)


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class _FusedAttention(TorchFunctionMode):
    """Attention as a kernel that keeps no scores, which GPUs have and the meta device does not."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is F.scaled_dot_product_attention:
            kwargs = kwargs or {}
            query = args[0] if args else kwargs["query"]
            return torch.empty_like(query)
        return function(*args, **(kwargs or {}))


@torch.no_grad()
def peak_bytes(function: Callable[[], Any]) -> int:
    """The most bytes that the tensors which `function` makes take at once; on the meta device nothing is computed."""
    with _FusedAttention(), _LiveBytes() as counter:
        function()
    return counter.peak


def _base_nets(base: str) -> tuple[Any, list[nn.Module], Any]:
    """UNet, text encoders and autoencoder of a base model on the meta device."""
    if base in UNET_CONFIGS:
        with torch.device("meta"):
            texts = [_text_encoder(_TEXT_ENCODERS[name], name == "g") for name in _TEXT_ENCODERS_OF[base]]
            vae = AutoencoderKL(
                block_out_channels=(128, 256, 512, 512),
                down_block_types=["DownEncoderBlock2D"] * 4,
                up_block_types=["UpDecoderBlock2D"] * 4,
                layers_per_block=2,
                latent_channels=4,
                force_upcast=base == "sdxl",
            )
        return empty_unet(base), texts, vae
    try:
        unet, vae = (
            _from_config(cls, base, folder) for cls, folder in ((UNet2DConditionModel, "unet"), (AutoencoderKL, "vae"))
        )
        with torch.device("meta"):
            names = ("text_encoder", "text_encoder_2") if is_sdxl(unet) else ("text_encoder",)
            configs = [CLIPTextConfig.from_pretrained(base, subfolder=name) for name in names]
            texts = [_text_encoder(config, number == 1) for number, config in enumerate(configs)]
    except (OSError, ValueError, TypeError) as error:
        raise InputError(
            f"base must be one of {', '.join(UNET_CONFIGS)}, or a folder or Hub repo of a Stable Diffusion model in the"
            f" layout of diffusers, got {base!r} ({one_line(error)})"
        ) from None
    return unet, texts, vae


def _from_config(cls: Any, base: str, folder: str) -> Any:
    config: Mapping[str, Any] = cls.load_config(base, subfolder=folder)
    with torch.device("meta"):
        return cls.from_config(config)


def _text_encoder(config: CLIPTextConfig, projects: bool) -> nn.Module:
    return CLIPTextModelWithProjection(config) if projects else CLIPTextModel(config)


def _tensors(net: nn.Module) -> list[torch.Tensor]:
    return [*net.parameters(), *net.buffers()]


def _bytes(net: nn.Module) -> int:
    return sum(tensor.nbytes for tensor in _tensors(net))


def _numbers(net: nn.Module) -> int:
    return sum(tensor.numel() for tensor in _tensors(net))


def _linear_bytes(net: nn.Module, bytes_per_weight: float) -> float:
    """Of a net whose linear layers are quantised; all else is in half precision."""
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    weights = sum(layer.weight.numel() for layer in linear)
    scales = 2 * sum(layer.out_features for layer in linear) if bytes_per_weight == _INT8 else 0
    return _bytes(net) - 2 * weights + bytes_per_weight * weights + scales


def _largest_layer(net: nn.Module) -> int:
    return max(sum(p.nbytes for p in module.parameters(recurse=False)) for module in net.modules())
