"""FFRNet, the ControlNet of FaceSnap: in full, or as a low-rank difference to the UNet."""

import inspect
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.models.controlnets.controlnet import (
    ControlNetConditioningEmbedding,
    ControlNetModel,
    ControlNetOutput,
    zero_module,
)

# `DiffusionPipeline.from_pretrained` looks in the component's module for the base class that says how to load it
from diffusers.models.modeling_utils import ModelMixin  # noqa: F401
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import nn

from .._upstream import offloading_group, onload_model, uncompiled
from ..errors import InputError, one_line
from .low_rank import Reference, share_layers, shared_layers, without_lora


logger = logging.getLogger(__name__)

#: Where the layers are that the UNet has too. The first, `conv_in`, is so small that it is always copied.
ENCODER = ("conv_in", "time_embedding", "class_embedding", "add_embedding", "down_blocks", "mid_block")


@dataclass
class RankLoss:
    """
    What an FFRNet of low rank has lost of a full one: the Frobenius norm of the part of the difference to the UNet that
    the rank cannot hold, relative to that of the whole difference. 0 is nothing, 1 everything.

    Attributes:
        layers (`dict[str, float]`): By name of the layer.
        total (`float`): Of all layers together.
    """

    layers: dict[str, float]
    total: float

    def __str__(self) -> str:
        worst = sorted(self.layers, key=self.layers.__getitem__, reverse=True)[:3]
        named = ", ".join(f"{name} {self.layers[name]:.1%}" for name in worst)
        return f"{self.total:.1%} of the difference to the UNet is lost (Frobenius norm); most in {named}"


class LandmarkEmbedding(ControlNetConditioningEmbedding):
    """The embedding of the landmark picture, which lets pass what [`~FFRNet.embed_landmarks`] has embedded before."""

    def forward(self, conditioning: torch.Tensor) -> torch.Tensor:
        if conditioning.shape[1] == self.conv_out.out_channels:
            return conditioning
        return super().forward(conditioning)


class FFRNet(ControlNetModel):
    r"""
    The Face Fidelity Reinforce Network of FaceSnap (arXiv 2602.00627, section 3.4): a ControlNet whose conditioning
    image is the drawn landmarks and whose cross-attention context is the identity tokens, never the text.

    Made from any Stable Diffusion UNet with `FFRNet.from_unet(unet)`. `encoder_hidden_states` of
    [`~ControlNetModel.forward`] are the identity tokens `(batch, num_tokens, cross_attention_dim)`. Base models of
    the SDXL family also take a pooled text embedding; FFRNet puts zeros in its place, so that nothing of the prompt
    reaches it.

    With a `rank` it is small (Control-LoRA): the linear and convolution layers of its encoder are the UNet's, shared and
    not copied, plus a low-rank difference of its own. Its own alone are also biases' differences, copies of the
    normalisations and of layers too small to gain, the embedding of the conditioning image and the zero convolutions. It
    computes what a full one with the summed weights computes. Only what is its own is in `parameters()` and in its
    state dict, is saved, and is trained. So after `from_pretrained`, unpickling, or with another base model:
    `ffrnet.bind(unet)`.

    Of the UNet it sees the layers alone, as they were loaded: no LoRA on it, whether loaded before or after binding, no
    attention processor, no IP-Adapter. Only `fuse_lora()` it cannot undo, for that changes the layers' weights
    themselves: [`has_fused_lora`] tells.

    Args:
        rank (`int`, *optional*): Of the differences to the UNet's layers. Without one, FFRNet is full.
        pooled_text (`bool`): Whether the pooled text embedding of SDXL is let through, for ControlNets that were trained
            with it (InstantID's).
        kwargs: Those of [`ControlNetModel`].
    """

    def __init__(self, *, rank: int | None = None, pooled_text: bool = False, **kwargs: Any):
        if rank is None:
            super().__init__(**kwargs)
        else:
            _check_rank(rank)
            with torch.device("meta"):  # layers that the UNet has take no memory here
                super().__init__(**kwargs)
            share_layers(self, ENCODER[1:], rank)
            _materialize(self)
        # the same layers with another `forward`
        self.controlnet_cond_embedding.__class__ = LandmarkEmbedding
        self.register_to_config(rank=rank, pooled_text=pooled_text)
        self._shared_parents: list[Reference] = []

    @classmethod
    def from_unet(cls, unet: UNet2DConditionModel, rank: int | None = None, **kwargs: Any) -> "FFRNet":
        r"""
        A fresh FFRNet, whose zero convolutions let nothing through yet.

        Args:
            unet (`UNet2DConditionModel`): The base model's.
            rank (`int`, *optional*): Makes a small FFRNet that shares the UNet's layers; bound to `unet`, which may be
                quantised. Without it, a full one with copies of them.
            kwargs: As in [`~ControlNetModel.from_unet`].

        Raises:
            InputError: FFRNet cannot be made from this UNet, or `rank` is not a whole number ≥ 1.
        """
        if unet.config.in_channels != unet.config.out_channels:
            raise InputError(
                f"unet takes {unet.config.in_channels} channels and gives {unet.config.out_channels}: make FFRNet from"
                " the plain base model instead, it then works with the inpainting model of the same family too"
            )
        if unet.config.encoder_hid_dim_type == "ip_image_proj":
            raise InputError("unet carries an IP-Adapter: call unload_ip_adapter() before making FFRNet from it")
        if rank is None:
            ffrnet = super().from_unet(unet, **kwargs)
        else:
            load_weights = kwargs.pop("load_weights_from_unet", True)
            with torch.device("meta"):
                config = ControlNetModel.from_unet(unet, load_weights_from_unet=False, **kwargs).config
            ffrnet = cls.from_config(config, rank=rank)
            if load_weights:
                _copy_own_layers(ffrnet, uncompiled(unet), ENCODER)
            ffrnet.bind(unet)
            if unet.device.type != "meta":
                ffrnet.to(unet.device)
        return _in_dtype(ffrnet, unet.dtype)

    @classmethod
    @torch.no_grad()
    def from_controlnet(
        cls, controlnet: ControlNetModel, unet: UNet2DConditionModel, rank: int
    ) -> tuple["FFRNet", RankLoss]:
        r"""
        A small FFRNet from a full one or from another ControlNet: the differences of its layers to the UNet's by
        singular values.

        Args:
            controlnet ([`ControlNetModel`]): A full FFRNet, or e.g. InstantID's IdentityNet.
            unet (`UNet2DConditionModel`): The base model's, not quantised; the best is the one that `controlnet` was
                made from. The small FFRNet is bound to it.
            rank (`int`): Of the differences.

        Returns:
            The small FFRNet in the dtype and on the device of `controlnet`, and what it has lost.

        Raises:
            InputError: `controlnet` and `unet` do not fit together, or the weights of one cannot be read.
        """
        is_ffrnet = isinstance(controlnet, FFRNet)
        if is_ffrnet and controlnet.config.rank is not None:
            raise InputError(f"controlnet is of rank {controlnet.config.rank} already; give a full one")
        pooled_text = controlnet.config.pooled_text if is_ffrnet else True
        small = cls.from_config(controlnet.config, rank=rank, pooled_text=pooled_text)
        small.to(controlnet.device)
        small.bind(unet)
        _copy_own_layers(small, controlnet)
        layers: dict[str, float] = {}
        lost = whole = 0.0
        for name, layer in shared_layers(small):
            full, base = without_lora(controlnet.get_submodule(name)), layer.base
            difference = _plain(full.weight, name) - _plain(base.weight, name).to(controlnet.device)
            bias = None if full.bias is None else full.bias.float() - base.bias.to(full.bias.device).float()
            size, rest = difference.norm().item(), layer.set_difference(difference, bias)
            layers[name] = rest / size if size else 0.0
            lost, whole = lost + rest**2, whole + size**2
        loss = RankLoss(layers, (lost / whole) ** 0.5 if whole else 0.0)
        return _in_dtype(small, controlnet.dtype).train(controlnet.training), loss

    @torch.no_grad()
    def to_full(self) -> "FFRNet":
        """
        The full FFRNet that computes the same, with the summed weights: larger and faster, and a ControlNet that other
        programs read. Raises [`AdapterError`] unless bound, [`InputError`] if the UNet is quantised or offloaded.
        """
        full = FFRNet.from_config(self.config, rank=None).to(self.device)
        _copy_own_layers(full, self)
        for name, layer in shared_layers(self):
            summed, base = full.get_submodule(name), layer.base
            summed.weight.copy_(_plain(base.weight, name).to(self.device) + layer.weight_difference())
            if summed.bias is not None:
                summed.bias.copy_(base.bias.to(self.device).float() + layer.up.bias.float())
        return _in_dtype(full, self.dtype).train(self.training)

    def bind(self, unet: UNet2DConditionModel) -> None:
        """
        Shares the layers of `unet` from now on: needed after loading an FFRNet of low rank. A full one needs none and
        stays as it is. Raises [`InputError`] if the UNet has other layers, and warns if a LoRA is fused into them.
        """
        root = uncompiled(unet)
        layers = dict(shared_layers(self))
        try:
            bases = {name: without_lora(root.get_submodule(name)) for name in layers}
        except AttributeError as error:
            raise InputError(f"unet does not fit FFRNet: {one_line(error)}; use a base model of its family") from None
        before = {name: layer._base for name, layer in layers.items()}
        try:
            for name, layer in layers.items():
                layer.bind(name, bases[name])
        except InputError:
            for name, layer in layers.items():
                layer._base = before[name]
            raise
        parents = {name[:at] for name in layers for at, letter in enumerate(name) if letter == "."}
        self._shared_parents = [Reference(root.get_submodule(name)) for name in ["", *sorted(parents)] if layers]
        if self.has_fused_lora():
            logger.warning(
                "A LoRA is fused into the UNet, so FFRNet shares weights that it was not made for: call"
                " unfuse_lora() on the pipeline first, or load the LoRA without fusing it."
            )

    @property
    def is_bound(self) -> bool:
        """Whether it can compute: a full FFRNet always, one of low rank after [`bind`]."""
        return all(layer._base.module is not None for _, layer in shared_layers(self))

    def is_bound_to(self, unet: UNet2DConditionModel) -> bool:
        """Whether the layers that it shares are those of `unet`; a full FFRNet shares none."""
        root = uncompiled(unet)
        try:
            return all(
                layer._base.module is without_lora(root.get_submodule(name)) for name, layer in shared_layers(self)
            )
        except AttributeError:
            return False

    def has_fused_lora(self) -> bool:
        """Whether a LoRA is fused into layers that are shared (`fuse_lora()`), and so reaches FFRNet too."""
        bases = {id(layer._base.module) for _, layer in shared_layers(self)}
        parents = (parent.module for parent in self._shared_parents if parent.module is not None)
        wrapped = (child for parent in parents for child in parent.children())
        return any(getattr(child, "merged", False) and id(without_lora(child)) in bases for child in wrapped)

    def embed_landmarks(self, landmark_picture: torch.Tensor) -> torch.Tensor:
        r"""
        The landmark picture as FFRNet takes it in, the same at every step: given as `controlnet_cond` in place of the
        picture, it saves computing it anew, and the residuals are equal to the last bit.

        Args:
            landmark_picture (`torch.Tensor` of shape `(batch, 3, height, width)`): In `[0, 1]`.

        Returns:
            `torch.Tensor` of shape `(batch, channels, height / 8, width / 8)`.
        """
        is_bgr = self.config.controlnet_conditioning_channel_order == "bgr"
        if is_bgr:
            landmark_picture = landmark_picture.flip(1)
        onload_model(self, landmark_picture.device)
        group = offloading_group(self)
        with _onloaded([] if group is None else [group]):
            embedding = self.controlnet_cond_embedding(landmark_picture)
        return (
            embedding.flip(1) if is_bgr else embedding
        )  # `forward` of the stock ControlNet flips all that it is given

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor | float | int,
        encoder_hidden_states: torch.Tensor,
        controlnet_cond: torch.Tensor,
        conditioning_scale: float = 1.0,
        added_cond_kwargs: dict[str, torch.Tensor] | None = None,
        **kwargs: Any,
    ) -> ControlNetOutput | tuple[tuple[torch.Tensor, ...], torch.Tensor]:
        if added_cond_kwargs is not None and "text_embeds" in added_cond_kwargs and not self.config.pooled_text:
            added_cond_kwargs = {
                **added_cond_kwargs,
                "text_embeds": torch.zeros_like(added_cond_kwargs["text_embeds"]),
            }
        if self._shared_parents and not torch.compiler.is_compiling():
            onload_model(self._shared_parents[0].module, sample.device)
            groups = self._offloaded_blocks()
        else:
            groups = []
        with _onloaded(groups):
            return super().forward(
                sample,
                timestep,
                encoder_hidden_states,
                controlnet_cond,
                conditioning_scale,
                added_cond_kwargs=added_cond_kwargs,
                **kwargs,
            )

    def _offloaded_blocks(self) -> list[Any]:
        """The groups around the shared layers that group offloading brings to the device when their block runs."""
        groups = [offloading_group(parent.module) for parent in self._shared_parents]
        return list(dict.fromkeys(group for group in groups if group is not None))


@contextmanager
def _onloaded(groups: list[Any]) -> Iterator[None]:
    """Within this context, groups of layers that are offloaded are on the device."""
    try:
        for group in groups:
            group.onload_()
            if group.stream is not None:
                group.stream.synchronize()
        yield
    finally:
        for group in groups:
            group.offload_()


def _materialize(model: nn.Module) -> None:
    """Gives fresh weights to the layers that are still on the meta device."""
    for module in model.modules():
        if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
            module.to_empty(device=torch.get_default_device(), recurse=False)
            module.reset_parameters()
    for module in (model.controlnet_cond_embedding.conv_out, model.controlnet_down_blocks, model.controlnet_mid_block):
        zero_module(module)


def _copy_own_layers(target: nn.Module, source: nn.Module, parts: tuple[str, ...] = ("",)) -> None:
    """Copies what neither of two models shares with a UNet, of the modules whose names begin with one of `parts`."""
    shared = {name for model in (target, source) for name, _ in shared_layers(model)}
    for name, module in target.named_modules():
        own = name not in shared and name.rpartition(".")[0] not in shared
        if own and name.startswith(parts) and any(True for _ in module.parameters(recurse=False)):
            try:
                module.load_state_dict(without_lora(source.get_submodule(name)).state_dict())
            except (AttributeError, RuntimeError) as error:
                raise InputError(f"weights of {name} cannot be copied ({one_line(error)})") from None


def _in_dtype(model: FFRNet, dtype: torch.dtype) -> FFRNet:
    return model if model.dtype == dtype else model.to(dtype)


def _plain(weight: torch.Tensor, name: str) -> torch.Tensor:
    if type(weight) not in (torch.Tensor, nn.Parameter) or weight.is_meta or not weight.is_floating_point():
        raise InputError(
            f"weight of {name} is quantised or offloaded: load the model in plain half or single precision"
        )
    return weight.detach().float()


def _check_rank(rank: Any) -> None:
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise InputError(f"rank must be a whole number ≥ 1, got {rank!r}")


# the arguments of `ControlNetModel` and its own, for `from_config`, which asks for the signature
_own, _stock = inspect.signature(FFRNet.__init__).parameters, inspect.signature(ControlNetModel.__init__).parameters
FFRNet.__init__.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
    [*_stock.values(), _own["rank"], _own["pooled_text"]]
)
