"""The training loss as one module, whose parameters are what is trained."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any

import torch
from torch import nn

from ..base_models import is_sdxl
from ..conditioner import FaceConditioner
from ..errors import InputError
from ..models.attention import IdentityAttention
from .alignment import alignment_losses, recorded_text_attention
from .losses import NoiseSchedule, at_least_single, contrastive_loss, face_weights, identity_distance
from .recognizer import FaceRecognizer
from .sampling_lora import unet_with_lora
from .training_config import IdentityLossConfig, LossConfig


_RECOGNIZER_BATCH = 64


class Objective(nn.Module):
    r"""
    `L = L_diffusion + λ_id · L_id` of a FaceSnap pipeline's adapter. Only the trained parts are its modules: wrappers
    for several processes and checkpoints see nothing else. The frozen base is used in place.

    Args:
        pipeline (`FaceSnapPipeline` or `FaceSnapXLPipeline`): With an adapter.
        parts (`list[str]`): The parts that are trained.
        loss ([`LossConfig`]), identity_loss ([`IdentityLossConfig`]): The two losses.
        recognizer ([`FaceRecognizer`], *optional*): Of the identity loss.
    """

    def __init__(
        self,
        pipeline: Any,
        parts: Sequence[str],
        loss: LossConfig,
        identity_loss: IdentityLossConfig,
        recognizer: FaceRecognizer | None = None,
    ):
        super().__init__()
        if identity_loss.weight > 0 and recognizer is None:
            raise InputError("identity_loss.weight is not 0 but there is no recognizer; give one, or set it to 0")
        if identity_loss.weight > 0 and identity_loss.mode == "few_step" and pipeline.ffrnet is None:
            raise InputError(
                "identity_loss.mode few_step looks for faces where FFRNet puts them, and there is none; add it to"
                " adapter.parts, or use prediction"
            )
        self.parts = nn.ModuleDict({part: getattr(pipeline, part) for part in parts})
        self.parts.requires_grad_(True)
        self.loss = loss
        self.identity_loss = identity_loss
        sampling_unet = pipeline.unet
        if identity_loss.lora is not None and self.takes_samples:
            sampling_unet = unet_with_lora(pipeline, identity_loss.lora, identity_loss.lora_file)
        # in a tuple, the base does not become a part of this module
        self._frozen = (pipeline, recognizer, sampling_unet)
        self.noise_schedule = NoiseSchedule(pipeline.scheduler)
        self.num_tokens = pipeline.mixer.num_tokens
        self._negatives: tuple[torch.Tensor, torch.Tensor] | None = None
        self._extra = _import_function(loss.extra) if loss.extra else None

    @property
    def pipeline(self) -> Any:
        return self._frozen[0]

    @property
    def recognizer(self) -> FaceRecognizer | None:
        return self._frozen[1]

    @property
    def sampling_unet(self) -> Any:
        """The UNet that takes the samples: the base's, or one with the same weights and `identity_loss.lora`."""
        return self._frozen[2]

    @property
    def takes_samples(self) -> bool:
        """Whether there are steps with samples of a few steps, for the identity loss or the extra one."""
        config = self.identity_loss
        return self.loss.extra_samples or (config.weight > 0 and config.mode == "few_step")

    @property
    def extras(self) -> set[str]:
        """What its samples must hold besides, of the extras of [`TrainingSamples`]."""
        config = self.identity_loss
        extras = {"start_noise"} if self.takes_samples else set()
        if config.weight == 0:
            return extras
        if config.reference != "embedding":
            extras.add("recognition_crop" if config.reference == "photo" else "target_recognition_crop")
        if config.contrastive > 0:
            extras.add("person")
        return extras

    @torch.no_grad()
    def set_negatives(self, crops: torch.Tensor | None, embeds: torch.Tensor, people: torch.Tensor) -> None:
        r"""
        Stores the embeddings of other people for the contrastive part of the identity loss.

        Args:
            crops (`torch.Tensor` of shape `(count, 3, size, size)`, *optional*): What the recognizer takes, RGB in `[0, 1]`;
                where the identity loss compares with stored embeddings, `None`.
            embeds (`torch.Tensor` of shape `(count, dim)`): The stored embeddings; unused where there are crops.
            people (`torch.Tensor` of shape `(count,)`): Numbers of the people, as in the samples' `person`.
        """
        recognizer = self.recognizer
        assert recognizer is not None
        device = next(self.parameters()).device
        if crops is None:
            negatives = recognizer.relative(embeds.to(device))
        else:
            negatives = torch.cat([recognizer.embed(some.to(device)) for some in crops.split(_RECOGNIZER_BATCH)])
        self._negatives = negatives, people.to(device)

    @property
    def conditioner(self) -> FaceConditioner:
        """What makes tokens and landmark pictures, as in the pipelines."""
        return self.pipeline.face_conditioner("training")

    def drawn_points(self, batch: dict[str, Any]) -> torch.Tensor:
        """The points of a batch that the adapter's picture is drawn from: landmarks, or InstantID's five key points."""
        return batch["key_points" if self.conditioner.draws_key_points else "landmarks"]

    def landmark_picture(self, batch: dict[str, Any]) -> torch.Tensor:
        """The landmarks of a batch as drawn for FFRNet, `(batch, 3, 8 · height, 8 · width)` for latents of that size."""
        return self.conditioner.landmark_picture(self.drawn_points(batch), *self._image_size(batch))

    @property
    def first_identity_step(self) -> int:
        """The first step of a run that computes the identity loss, with samples where there are steps with some."""
        config = self.identity_loss
        if not self.takes_samples:
            return config.start_step
        return math.ceil(config.start_step / config.every) * config.every

    def forward(self, batch: dict[str, Any], step: int = 0) -> dict[str, torch.Tensor]:
        r"""
        Args:
            batch (`dict`): As [`collate`] makes it, on the device.
            step (`int`): Of the run.

        Returns:
            `dict[str, torch.Tensor]`: `loss`, and detached `mse`, `diffusion`; where they are computed `identity`,
            `identity_share` (the share of samples that took part in it), `contrastive`, `align_semantic`, `align_layout` and
            `extra`.
        """
        clean, noisy = self._noisy(batch)  # (batch, channels, height, width) each
        timesteps = batch["timestep"]
        conditions = self.encode_conditions(batch)
        with_face = None
        with contextlib.ExitStack() as stack:
            if self._alignment_due(step):
                with_face = stack.enter_context(recorded_text_attention(self.pipeline.unet))
            predicted = self.predict(noisy, timesteps, conditions)  # (batch, channels, height, width)

        error = (predicted - self.noise_schedule.target(clean, batch["noise"], timesteps)).square()
        if self.loss.face_weight != 1:
            image_size, latent_size = self._image_size(batch), (error.shape[-2], error.shape[-1])
            error = error * face_weights(batch["detected"], image_size, latent_size, self.loss.face_weight)
        error = error.mean(dim=(1, 2, 3))  # (batch,)
        losses = {"mse": error.mean().detach()}
        if self.loss.min_snr_gamma is not None:
            error = error * self.noise_schedule.min_snr_weight(timesteps, self.loss.min_snr_gamma)
        total = error.mean()
        losses["diffusion"] = total.detach()

        if with_face is not None:
            with torch.no_grad(), recorded_text_attention(self.pipeline.unet) as without:
                self._predict_without_face(noisy, timesteps, conditions)
            semantic, layout = alignment_losses(with_face, without)
            aligned = self.loss.align_semantic * semantic + self.loss.align_layout * layout
            total = total + self.loss.align_every * aligned
            losses["align_semantic"], losses["align_layout"] = semantic.detach(), layout.detach()
        sampled = None
        if self._samples_due(step):
            sampled_batch = self.sampled_batch(batch)
            of_samples = conditions
            if sampled_batch is not batch:
                of_samples = self.encode_conditions(sampled_batch, conditions["identity_tokens"])
            sampled = self.sample(sampled_batch["start_noise"], of_samples)
        if self._identity_due(step):
            if self.identity_loss.mode == "prediction":
                identity, share, contrastive = self._identity_of_prediction(noisy, predicted, timesteps, batch)
                weight = self.identity_loss.weight
            else:
                assert sampled is not None
                identity, share, contrastive = self._identity_of_sample(sampled, sampled_batch)
                weight = self.identity_loss.weight * self.identity_loss.every
            total = total + weight * identity
            losses["identity"], losses["identity_share"] = identity.detach(), share
            if self.identity_loss.contrastive > 0:
                total = total + weight * self.identity_loss.contrastive * contrastive
                losses["contrastive"] = contrastive.detach()
        if self._extra is not None:
            tokens, text = conditions["identity_tokens"], conditions["text_embeds"]
            extra = self._extra(
                objective=self,
                batch=batch,
                identity_tokens=tokens,
                text_embeds=text,
                latents=clean,
                predicted_latents=self.noise_schedule.clean(noisy, predicted, timesteps),
                sampled_latents=sampled,
                step=step,
            )
            total = total + extra
            losses["extra"] = extra.detach()
        return {"loss": total, **losses}

    @torch.no_grad()
    def prediction_error(self, batch: dict[str, Any]) -> torch.Tensor:
        """The mean squared error of the prediction for a batch, without all else of the loss: is it finite?"""
        clean, noisy = self._noisy(batch)
        predicted = self.predict(noisy, batch["timestep"], self.encode_conditions(batch))
        return (predicted - self.noise_schedule.target(clean, batch["noise"], batch["timestep"])).square().mean()

    def _noisy(self, batch: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        """Clean latents of a batch, and with noise."""
        clean = batch.get("latents")
        if clean is None:
            clean = self.encode_images(batch["pixel_values"], batch["encoder_noise"])
        return clean, self.noise_schedule.add_noise(clean, batch["noise"], batch["timestep"])

    @torch.no_grad()
    def encode_images(self, pixel_values: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Latents, in float32 at least, of images in `[-1, 1]`, drawn with the given noise where the VAE has a distribution."""
        vae = self.pipeline.vae
        with torch.autocast(pixel_values.device.type, enabled=False):
            encoded = vae.encode(pixel_values.to(vae.dtype))
        if hasattr(encoded, "latent_dist"):
            distribution = encoded.latent_dist
            latents = at_least_single(distribution.mean) + at_least_single(distribution.std) * noise
        else:
            latents = at_least_single(encoded.latents)
        return (latents - (vae.config.get("shift_factor") or 0.0)) * vae.config.scaling_factor

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        """Images in `[0, 1]`, not clipped, so that no gradient gets lost."""
        vae = self.pipeline.vae
        latents = latents / vae.config.scaling_factor + (vae.config.get("shift_factor") or 0.0)
        with torch.autocast(latents.device.type, enabled=False):
            return at_least_single(vae.decode(latents.to(vae.dtype)).sample) / 2 + 0.5

    def encode_conditions(self, batch: dict[str, Any], identity_tokens: torch.Tensor | None = None) -> dict[str, Any]:
        """Text, identity tokens (the given ones, if any) and landmarks of a batch, as all predictions of a step take them."""
        conditioner, ffrnet = self.conditioner, self.pipeline.ffrnet
        text_embeds, pooled = self._encode_text(batch["caption"], batch["without_text"])
        if identity_tokens is None:
            states = conditioner.image_states(batch["clip_crop"]) if "clip_crop" in batch else None
            identity_tokens = conditioner.mix(batch["face_embeds"], states, batch["without_identity"])
        conditions = {
            "text_embeds": text_embeds,  # (batch, text tokens, width)
            "identity_tokens": identity_tokens,  # (batch, identity tokens, width)
            "with_landmarks": ~batch["without_landmarks"],  # (batch,)
            "added": None,
        }
        if ffrnet is not None:
            picture = self.landmark_picture(batch).to(ffrnet.dtype)
            conditions["landmark_embeds"] = ffrnet.embed_landmarks(picture)  # (batch, channels, height, width)
        if pooled is not None:
            conditions["added"] = {"text_embeds": pooled, "time_ids": batch["sizes"].to(pooled.dtype)}
        return conditions

    def predict(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: dict[str, Any], unet: Any = None
    ) -> torch.Tensor:
        """What the base model with the adapter predicts, in float32 at least; with `unet` in place of the base's, if given."""
        unet, ffrnet = self.pipeline.unet if unet is None else unet, self.pipeline.ffrnet
        tokens = conditions["identity_tokens"]
        sample = noisy.to(unet.dtype)
        added = conditions["added"]
        residuals: dict[str, Any] = {}
        if ffrnet is not None:
            down, mid = ffrnet(
                noisy.to(ffrnet.dtype),
                timesteps,
                encoder_hidden_states=tokens.to(ffrnet.dtype),
                controlnet_cond=conditions["landmark_embeds"].to(ffrnet.dtype),
                added_cond_kwargs=None if added is None else {k: v.to(ffrnet.dtype) for k, v in added.items()},
                return_dict=False,
            )
            kept = conditions["with_landmarks"][:, None, None, None]  # (batch, 1, 1, 1)
            residuals = {
                "down_block_additional_residuals": [(item * kept).to(unet.dtype) for item in down],
                "mid_block_additional_residual": (mid * kept).to(unet.dtype),
            }
        context = torch.cat(
            [conditions["text_embeds"].to(unet.dtype), tokens.to(unet.dtype)], dim=1
        )  # (batch, tokens, width)
        attention = self.pipeline.identity_attention
        if attention is None:  # the tokens are only kept from the UNet
            attention = IdentityAttention(layers={})
        predicted = unet(
            sample,
            timesteps,
            encoder_hidden_states=context,
            cross_attention_kwargs=attention.context(unet, tokens.shape[1]).as_kwargs(),
            added_cond_kwargs=None if added is None else {k: v.to(unet.dtype) for k, v in added.items()},
            return_dict=False,
            **residuals,
        )[0]
        return at_least_single(predicted)

    def _predict_without_face(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, conditions: dict[str, Any]
    ) -> torch.Tensor:
        """What the base model predicts by itself."""
        unet, added = self.pipeline.unet, conditions["added"]
        return unet(
            noisy.to(unet.dtype),
            timesteps,
            encoder_hidden_states=conditions["text_embeds"].to(unet.dtype),
            added_cond_kwargs=None if added is None else {k: v.to(unet.dtype) for k, v in added.items()},
            return_dict=False,
        )[0]

    def _alignment_due(self, step: int) -> bool:
        wanted = self.loss.align_semantic > 0 or self.loss.align_layout > 0
        return wanted and step % self.loss.align_every == 0

    def sample(self, noise: torch.Tensor, conditions: dict[str, Any]) -> torch.Tensor:
        r"""
        Clean latents from pure noise in `identity_loss.steps` steps of DDIM (Song et al. 2021, equation 12, no noise
        added) at trailing timesteps, without guidance. The gradient goes through the last `gradient_steps`.
        """
        config, count = self.identity_loss, len(noise)
        # the first timestep is the last of the schedule, where the sample is (almost) pure noise
        spaced = torch.arange(config.steps, 0, -1, device=noise.device) * len(self.noise_schedule) / config.steps
        timesteps = spaced.round().long() - 1  # (steps,)
        noisy = clean = noise
        for number, timestep in enumerate(timesteps):
            now = timestep.expand(count)
            with torch.set_grad_enabled(torch.is_grad_enabled() and config.steps - number <= config.gradient_steps):
                predicted = self.predict(noisy, now, conditions, self.sampling_unet)
                clean = self.noise_schedule.clean(noisy, predicted, now)
                if number + 1 < len(timesteps):
                    noise = self.noise_schedule.noise(noisy, predicted, now)
                    noisy = self.noise_schedule.add_noise(clean, noise, timesteps[number + 1].expand(count))
        return clean

    def sampled_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """
        A batch as its samples show it: with `identity_loss.prompt` as caption; in `identity_loss.resolution`, to which the
        points and SDXL's sizes are scaled, and `noise` and `start_noise` are cut. Photo and latents stay as they are.
        """
        config = self.identity_loss
        if config.prompt is not None:
            prompts = [config.prompt] * len(batch["caption"])
            batch = {**batch, "caption": prompts, "without_text": torch.zeros_like(batch["without_text"])}
        if config.resolution is None:
            return batch
        before = self._image_size(batch)
        scale = min(1.0, config.resolution / math.sqrt(math.prod(before)))
        height, width = (max(1, round(side * scale)) for side in batch["start_noise"].shape[-2:])
        # a part of independent noise is as good as noise of its own
        noise = batch["start_noise"][..., :height, :width]
        batch = {**batch, "noise": noise, "start_noise": noise}
        after = self._image_size(batch)
        scales = [after[axis] / before[axis] for axis in range(2)]
        for name in ("landmarks", "key_points", "detected"):
            if name in batch:  # (batch, points, 2), the center of the top left pixel at (0, 0)
                points = batch[name]
                batch[name] = (points + 0.5) * points.new_tensor([scales[1], scales[0]]) - 0.5
        if "sizes" in batch:  # (batch, 6): of the file; the crop's corner; of the picture
            sizes = batch["sizes"]
            corner = (sizes[:, 2:4] * sizes.new_tensor(scales, dtype=torch.float64)).round().to(sizes.dtype)
            batch["sizes"] = torch.cat([sizes[:, :2], corner, sizes.new_tensor(after).expand(len(sizes), 2)], dim=1)
        return batch

    def _image_size(self, batch: dict[str, Any]) -> tuple[int, int]:
        height, width = batch["noise"].shape[-2:]
        return height * self.pipeline.vae_scale_factor, width * self.pipeline.vae_scale_factor

    def _identity_due(self, step: int) -> bool:
        config = self.identity_loss
        if config.weight == 0 or step < config.start_step:
            return False
        return config.mode == "prediction" or step % config.every == 0

    def _samples_due(self, step: int) -> bool:
        config = self.identity_loss
        if self.loss.extra_samples and step % config.every == 0:
            return True
        return config.mode == "few_step" and self._identity_due(step)

    def _identity_of_prediction(
        self, noisy: torch.Tensor, predicted: torch.Tensor, timesteps: torch.Tensor, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """L_id on the clean images implied by the predictions, of samples that are clean enough and show someone."""
        usable = (self.noise_schedule.snr(timesteps) >= self.identity_loss.min_snr) & ~batch["without_identity"]
        clean = self.noise_schedule.clean(noisy[usable], predicted[usable], timesteps[usable])
        return self._identity(clean, batch, usable, predicted)

    def _identity_of_sample(
        self, sampled: torch.Tensor, batch: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """L_id on sampled latents, of samples that show someone at a known place."""
        usable = ~batch["without_identity"] & ~batch["without_landmarks"]
        return self._identity(sampled[usable], batch, usable, sampled)

    def _identity(
        self, clean: torch.Tensor, batch: dict[str, Any], usable: torch.Tensor, of: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sum over the usable samples divided by the number of all: L_id, and its contrastive part; between them their share."""
        share = usable.float().mean()
        if not usable.any():
            nothing = of.sum() * 0.0  # all processes must reach all parameters
            return nothing, share, nothing
        embeds, reference = self._embeds(clean, batch, usable)
        identity = identity_distance(embeds, reference).sum() / len(usable)
        if self._negatives is None:
            return identity, share, torch.zeros_like(identity)
        negatives, people = self._negatives
        other_people = people != batch["person"][usable][:, None]  # (usable, count)
        contrastive = contrastive_loss(
            embeds, reference, negatives.to(embeds.dtype), other_people, self.identity_loss.temperature
        )
        return identity, share, contrastive.sum() / len(usable)

    def _embeds(
        self, clean: torch.Tensor, batch: dict[str, Any], usable: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings of clean latents, and those that they should have, `(usable, dim)` each."""
        recognizer, compared = self.recognizer, self.identity_loss.reference
        assert recognizer is not None
        images = self.decode_latents(clean)  # (usable, 3, height, width) in pixels
        with torch.autocast(images.device.type, enabled=False):
            embeds = recognizer(images, batch["detected"][usable])  # (usable, dim)
            with torch.no_grad():
                if compared == "embedding":
                    reference = recognizer.relative(batch["face_embeds"][usable].to(embeds.dtype))
                else:
                    crops = batch["recognition_crop" if compared == "photo" else "target_recognition_crop"]
                    reference = recognizer.embed(crops[usable])
        return embeds, reference.to(embeds.dtype)

    @torch.no_grad()
    def _encode_text(self, captions: list[str], without: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        pipeline = self.pipeline
        is_xl = is_sdxl(pipeline.unet)
        zeros = is_xl and pipeline.config.force_zeros_for_empty_prompt
        captions = ["" if left_out else caption for caption, left_out in zip(captions, without.tolist(), strict=True)]
        encoded = pipeline.encode_prompt(
            prompt=captions, device=without.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        embeds, pooled = encoded[0], encoded[2] if is_xl else None
        if zeros:
            embeds = embeds * ~without[:, None, None]
            pooled = None if pooled is None else pooled * ~without[:, None]
        return embeds, pooled


def _import_function(name: str) -> Any:
    module, _, function = name.partition(":")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"loss.extra {name!r} cannot be imported ({error}); name package.module:function") from error
