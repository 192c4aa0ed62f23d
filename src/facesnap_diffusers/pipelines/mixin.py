"""How a face gets into a stock ControlNet pipeline."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from .._upstream import (
    INTERRUPT,
    SHOWN_AFTER_A_CALL,
    callback_tensor_inputs,
    execution_device,
    is_model_offloaded,
    progress_bar_config,
    register_in_diffusers,
    resolve_dtype,
    uncompiled,
    with_text_model,
)
from ..adapter.config import FaceSnapConfig
from ..adapter.lifecycle import FaceSnapAdapterMixin
from ..conditioner import FaceConditioner
from ..errors import InputError, as_number, expanded, one_line, shown, suggestion
from ..faces.expression import Expression
from ..faces.photo import read_pixels
from ..faces.pose import LIMITS, HeadPose
from ..identity import FaceIdentity
from ..models.attention import IdentityAttention
from ..models.ffrnet import FFRNet
from ..models.regions import RegionalContext, Regions
from ..steering import Steering, as_landmarks, as_list, check_followed
from .arguments import check_batch, check_prompt, check_stock_arguments, check_strength
from .bases import check_base, check_checkpoint, is_xl_components, is_xl_file, is_xl_folder, missing_checkpoint
from .call_copy import components_of_call, restored_after_call
from .control import RoutedControlNet, ScheduledFFRNet
from .people import Person, check_people, check_people_followed, with_identities
from .picture import Crop, as_size, is_latent, open_pictures, picture_size
from .schedule import CallProgress, FaceSnapSchedule
from .signatures import stock_arguments, with_stock_signature
from .step import Guidance, StepEnd


@dataclass(frozen=True)
class FaceTokens:
    r"""
    The identity tokens of a call.

    Attributes:
        conditional (`torch.Tensor` of shape `(batch, tokens, width)`): Those of several people side by side. Where FFRNet
            comes from another adapter than the identity attention, its own tokens follow.
        unconditional (`torch.Tensor` of shape `(batch, tokens, width)`): For classifier-free guidance.
        num_ffrnet_tokens (`int`): How many tokens FFRNet takes, counted from the end.
        num_left_out (`int`): How many of those are not for identity attention: FFRNet's own, or none.
    """

    conditional: torch.Tensor
    unconditional: torch.Tensor
    num_ffrnet_tokens: int
    num_left_out: int

    @classmethod
    def of(
        cls, conditioner: FaceConditioner, identities: Sequence[FaceIdentity], in_one_image: bool = False
    ) -> FaceTokens:
        """Those of identities: one for each image, or all `in_one_image`."""

        def tokens_of(source: FaceConditioner, people: Sequence[FaceIdentity]) -> tuple[torch.Tensor, torch.Tensor]:
            tokens, unconditional = source.tokens(people)
            if in_one_image:
                return tokens.flatten(0, 1)[None], unconditional.flatten(0, 1)[None]
            return tokens, unconditional

        tokens, unconditional = tokens_of(conditioner, identities)
        if conditioner.of_ffrnet is None:
            return cls(tokens, unconditional, num_ffrnet_tokens=tokens.shape[1], num_left_out=0)
        own, own_unconditional = tokens_of(conditioner.of_ffrnet, conditioner.as_ffrnet_sees(identities))
        return cls(
            torch.cat([tokens, own.to(tokens)], dim=1),
            torch.cat([unconditional, own_unconditional.to(tokens)], dim=1),
            num_ffrnet_tokens=own.shape[1],
            num_left_out=own.shape[1],
        )


@dataclass(frozen=True)
class FaceConditions:
    r"""
    What a face is to one call of a stock pipeline.

    Attributes:
        tokens ([`FaceTokens`]): Identity tokens.
        landmark_picture (`torch.Tensor` of shape `(batch, 3, height, width)`): For FFRNet, in `[0, 1]`.
        regions ([`Regions`], *optional*): Where each of several people is.
    """

    tokens: FaceTokens
    landmark_picture: torch.Tensor
    regions: Regions | None = None


class FaceSnapMixin(FaceSnapAdapterMixin):
    r"""
    Brings a face into a stock ControlNet pipeline, as identity tokens and a landmark picture; that one does the rest.

    A call runs on a shallow copy of the pipeline, with a scheduler and, for FFRNet, a ControlNet of its own. Identity
    tokens travel with the prompt embeddings, and how the attention layers are to take them in `cross_attention_kwargs`.
    So calls of several threads, and of several pipelines on one UNet, see nothing of each other.
    """

    #: The stock pipeline without ControlNet, to which calls without a face go.
    _plain_class: type[DiffusionPipeline]

    #: The name under which the stock pipeline takes the ControlNet's image.
    _control_image_argument = "control_image"

    #: Whether this is the copy that a call runs on.
    _is_of_call = False
    #: Of the copy that a call runs on: the pipeline that was called.
    _origin: Any = None

    #: Identity tokens and unconditional tokens, each (batch, tokens, width): only on the copy that a call runs on.
    _identity_tokens: tuple[torch.Tensor, torch.Tensor] | None = None

    #: When the parts of an adapter work; see [`set_facesnap_schedule`].
    _facesnap_schedule = FaceSnapSchedule()

    #: How often the calls that ran were told to stop; each stops when this is no longer what it was as it began.
    _stop_requests = 0

    #: Whether a call begins with a picture, which is then its `image=`.
    _takes_picture = False

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "_plain_class"):
            for name in ("__call__", "encode_prompt"):
                setattr(cls, name, with_stock_signature(cls, name))
            setattr(cls, INTERRUPT, False)  # until the first call
            register_in_diffusers(cls)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> Any:
        """
        As `DiffusionPipeline.from_pretrained`. Raises [`InputError`], which names the right class, for checkpoints of another
        family.
        """
        check_checkpoint(pretrained_model_name_or_path)
        source = str(expanded(pretrained_model_name_or_path))
        check_base(cls, is_xl_folder(source, source, kwargs), source)
        try:
            return super().from_pretrained(source, **kwargs)
        except (OSError, ValueError) as error:
            missing = missing_checkpoint(source, error)
            if missing is None:
                raise
            raise missing from error

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | Path, **kwargs: Any) -> Any:
        """
        As in the stock pipelines. Raises [`InputError`], which names the right class, for checkpoints of another family.
        """
        check_checkpoint(pretrained_model_link_or_path)
        source = str(expanded(pretrained_model_link_or_path))
        try:
            return super().from_single_file(source, **kwargs)
        except Exception as error:
            # to look into it first would read every checkpoint twice
            check_base(cls, is_xl_file(source), source)
            missing = missing_checkpoint(source, error)
            if missing is None:
                raise
            raise missing from error

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        r"""
        A pipeline of this class from the components of another one: shared, not copied, each in its own dtype. An
        adapter, its scales and the face analyzer come along.

        Args:
            pipeline (`DiffusionPipeline`): Any pipeline of the same Stable Diffusion family.
            kwargs: Components that replace those of `pipeline`; `dtype` to convert all of them, in place.

        Raises:
            InputError: `pipeline` is of another family, or an argument is wrong.
            AdapterError: The adapter that comes along does not fit `unet=`.
        """
        dtype = resolve_dtype(kwargs.pop("dtype", None), kwargs.pop("torch_dtype", None))
        if not isinstance(pipeline, DiffusionPipeline):
            raise InputError(f"pipeline must be a DiffusionPipeline, got {type(pipeline).__name__}")
        source = f"pipeline ({type(pipeline).__name__})"
        check_base(cls, is_xl_components(pipeline.components, type(pipeline).__name__, source), source)
        if dtype is not None and not isinstance(dtype, torch.dtype):
            raise InputError(f"dtype must be a torch.dtype, got {dtype!r}")
        parameters = inspect.signature(cls.__init__).parameters
        shared = {**pipeline.config, **pipeline.components}
        arguments = {**{name: value for name, value in shared.items() if name in parameters}, **kwargs}
        missing = [
            name
            for name, parameter in parameters.items()
            if parameter.default is parameter.empty and name not in (*arguments, "self")
        ]
        unknown = sorted(set(kwargs) - set(parameters))
        if missing or unknown:
            raise InputError(
                f"pipeline {type(pipeline).__name__} cannot become a {cls.__name__}:"
                f" missing {missing or 'nothing'}, unknown {unknown or 'nothing'}"
            )
        new_pipeline = cls(**arguments)
        if dtype is not None:
            new_pipeline.to(dtype=dtype)
        if isinstance(pipeline, FaceSnapMixin):
            new_pipeline._facesnap_scale = pipeline.facesnap_scale
            new_pipeline._facesnap_schedule = pipeline.facesnap_schedule
            new_pipeline.face_analyzer = pipeline.face_analyzer
        return new_pipeline

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        face_image: Any = None,
        identity: FaceIdentity | Sequence[FaceIdentity] | None = None,
        face_index: int | None = None,
        pose_image: Any = None,
        pose: HeadPose | Sequence[HeadPose] | None = None,
        expression: str | dict[str, float] | Expression | Sequence[Any] | None = None,
        face_box: Sequence[float] | Sequence[Sequence[float]] | None = None,
        landmarks: torch.Tensor | np.ndarray | None = None,
        people: Sequence[Person] | None = None,
        facesnap_schedule: str | FaceSnapSchedule | None = None,
        identity_scale: float | Mapping[str, float] | None = None,
        landmark_scale: float | None = None,
        **kwargs: Any,
    ) -> Any:
        r"""
        Generates images of a person. Without `face_image` and `identity` this is plain Stable Diffusion.

        Args:
            prompt (`str` or `list[str]`, *optional*): The prompt or prompts.
            face_image (photo or list, *optional*): The reference photo: PIL image, path, URL, array or tensor. A list
                of photos is *one* person seen several times; a list of lists has one person for each image of the
                batch.
            identity ([`FaceIdentity`] or list, *optional*): What [`encode_face`] gave, in place of `face_image`; a list
                has one for each image of the batch.
            face_index (`int` or [`FaceChoice`], *optional*): Which face to take where photos show several; the largest by default.
            pose_image (photo or list of photos, *optional*): Another photo whose pose, expression and framing the
                image takes. It may show anyone: the proportions stay those of the reference.
            pose ([`HeadPose`] or list, *optional*): Yaw, pitch and roll in degrees.
            expression (`str`, `dict`, [`Expression`] or list, *optional*): A preset such as `"smile"`, or ARKit weights.
            face_box (`tuple` or list of them, *optional*): Where the face goes: left, top, right, bottom as shares of
                the image, for the same face seen from the front.
            landmarks (`torch.Tensor` of shape `([batch,] 72, 2)`, *optional*): Landmarks in pixels of the image, used as
                they are; for InstantID also its five key points `([batch,] 5, 2)`. Adapters without FFRNet take neither
                these nor the four arguments above.
            people (`list[`[`Person`]`]`, *optional*): Several people in one image, each with an identity, a face box
                and, if you like, a pose and an expression; in place of all of the above but the prompt.
            facesnap_schedule (`str` or [`FaceSnapSchedule`], *optional*): When the parts of the adapter work in this
                call: `"exact"`, `"fast"` or your own; by default as [`set_facesnap_schedule`] says.
            identity_scale (`float` or `dict[str, float]`, *optional*), landmark_scale (`float`, *optional*): Scales of
                this call only; by default those of [`set_facesnap_scale`].
            kwargs: All arguments of the stock pipeline, such as `negative_prompt`, `num_inference_steps`,
                `guidance_scale`, `generator`, `height` and `width`. `controlnet_conditioning_scale` and the
                ControlNet's images are for further ControlNets; [`set_facesnap_scale`] scales FaceSnap.

        Returns:
            What the stock pipeline returns.

        Raises:
            NoFaceFoundError: A photo shows no face.
            AdapterError: A face is given, but no adapter is loaded.
            FaceEncoderMismatchError: The face was encoded by another recognizer than the adapter was trained with.
            InputError: An argument has a wrong type, shape, range or length.
        """
        steering = Steering(pose_image, pose, expression, face_box, face_index)
        schedule = self._facesnap_schedule if facesnap_schedule is None else FaceSnapSchedule.of(facesnap_schedule)
        self._check_arguments(kwargs, with_face=not (face_image is None and identity is None and people is None))
        check_prompt("prompt", prompt)
        if (prompt is None) == (kwargs.get("prompt_embeds") is None):
            raise InputError("prompt= or prompt_embeds= must be given, and not both")
        _read_pictures(kwargs)
        self._open_pictures(kwargs)
        check_stock_arguments(self, prompt, kwargs)
        crop = None
        if people is not None:
            own = {"face_image": face_image, "identity": identity, "face_index": face_index, "landmarks": landmarks}
            given = [*(name for name, value in own.items() if value is not None), *steering.given]
            if given:
                raise InputError(f"{given[0]}= is for one person, people= for several; give each Person its own")
            if kwargs.get("padding_mask_crop") is not None:
                raise InputError("padding_mask_crop= goes with one person; for people= draw one after the other")
            height, width = self._image_size(kwargs)
            conditions = self._conditions_of_people(people, height, width)
        elif face_image is None and identity is None:
            _refuse_steering_without_face(steering, landmarks)
            for name, value in {
                "identity_scale": identity_scale,
                "landmark_scale": landmark_scale,
                "facesnap_schedule": facesnap_schedule,
            }.items():
                if value is not None:
                    raise InputError(f"{name}= is about a face; pass face_image= or identity= too")
            return self._call_without_face(prompt, kwargs)
        else:
            if face_index is not None and face_image is None and pose_image is None:
                raise InputError("face_index= picks a face from face_image= or pose_image=; pass one of them")
            if landmarks is not None and steering.given:
                raise InputError(
                    f"landmarks= are used as they are, so {steering.given[0]}= has no effect; pass one of the two"
                )
            conditioner = self.face_conditioner("face_image=" if identity is None else "identity=")
            check_followed(self.ffrnet, [*steering.given, *([] if landmarks is None else ["landmarks"])])
            num_prompts = len(prompt) if isinstance(prompt, list) else 1
            identities = conditioner.identities(face_image, identity, face_index, num_prompts)
            height, width = self._image_size(kwargs)
            picture, mask = (kwargs.get("image"), kwargs.get("mask_image")) if self._takes_picture else (None, None)
            crop = self._crop_to_mask(kwargs, height, width)
            canvas = (height, width) if crop is None else (crop.image.height, crop.image.width)
            if landmarks is None:
                steering = self._default_steering(conditioner, steering, picture, mask, *canvas)
                points = conditioner.drawn_points(identities, steering, *canvas)
            else:
                counts = (5, 72) if conditioner.landmark_style == "instantid5" else (72,)
                points = as_landmarks(landmarks, "landmarks", counts)[..., :2]
            if crop is not None:
                points = crop.move(points)
            prompt = self._match_batch(prompt, identities, points, kwargs)
            picture = conditioner.landmark_picture(points, height, width)
            conditions = FaceConditions(FaceTokens.of(conditioner, identities), picture)
        scales = self._scales(identity_scale, landmark_scale)
        output = self._call_with_face(prompt, conditions, scales, schedule, kwargs)
        return output if crop is None else _with_images(output, crop.put_back, self.image_processor)

    def set_facesnap_schedule(self, schedule: str | FaceSnapSchedule) -> None:
        r"""
        Sets when the parts of the adapter work in the course of a call. Each adapter begins with `"exact"` when it is loaded.

        Args:
            schedule (`str` or [`FaceSnapSchedule`]): `"exact"`: always, as the adapter was trained. `"fast"`: FFRNet on the
                conditional half only and not at every step, which brings a call near the price of the plain pipeline. Or
                your own.
        """
        self._facesnap_schedule = FaceSnapSchedule.of(schedule)

    @property
    def facesnap_schedule(self) -> FaceSnapSchedule:
        """The schedule in force."""
        return self._facesnap_schedule

    def _install_adapter(self, config: FaceSnapConfig | None, modules: Mapping[str, Any]) -> None:
        super()._install_adapter(config, modules)
        self._facesnap_schedule = FaceSnapSchedule()

    def encode_face(
        self,
        face_image: Any = None,
        *,
        face_index: int | None = None,
        embedding: torch.Tensor | np.ndarray | None = None,
        landmarks: torch.Tensor | np.ndarray | None = None,
    ) -> FaceIdentity:
        return self.face_conditioner("encode_face").encode_face(
            face_image, face_index=face_index, embedding=embedding, landmarks=landmarks
        )

    encode_face.__doc__ = FaceConditioner.encode_face.__doc__

    def encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
        """As in the stock pipeline; in a call with a face, the identity tokens follow the text."""
        if not self._is_of_call:
            scale = {} if kwargs.get("lora_scale") is None else {"scale": kwargs["lora_scale"]}
            call_kwargs = {"cross_attention_kwargs": scale}
            call = self._for_one_call(call_kwargs)
            if scale and not call_kwargs["cross_attention_kwargs"]:  # it is in the copy's layers
                kwargs["lora_scale"] = None
            with restored_after_call(call.components, call_kwargs):
                return call.encode_prompt(*args, **kwargs)
        prompt_embeds, negative_prompt_embeds, *pooled = super().encode_prompt(*args, **kwargs)
        if self._identity_tokens is not None:
            tokens, unconditional_tokens = self._identity_tokens
            prompt_embeds = append_tokens(prompt_embeds, tokens)
            if negative_prompt_embeds is not None:
                negative_prompt_embeds = append_tokens(negative_prompt_embeds, unconditional_tokens)
        return (prompt_embeds, negative_prompt_embeds, *pooled)

    def predict_landmarks(
        self,
        identity: FaceIdentity | Sequence[FaceIdentity],
        *,
        height: int,
        width: int,
        pose_image: Any = None,
        pose: HeadPose | Sequence[HeadPose] | None = None,
        expression: str | dict[str, float] | Expression | Sequence[Any] | None = None,
        face_box: Sequence[float] | Sequence[Sequence[float]] | None = None,
        face_index: int | None = None,
        image: Any = None,
        mask_image: Any = None,
    ) -> torch.Tensor:
        r"""
        The landmarks by which a call with the same arguments steers: the identity's proportions, with its own pose and
        expression or those that the arguments ask for.

        Without `face_box` the face stands as in the pose image. Without that, in pipelines that begin with a picture: as
        the face in `image` (the one nearest to the middle of the mask, of those that the mask touches), which gives pose
        and expression too, else in the box around the mask. Without all of these: as in the reference photo, scaled to
        cover the image. An identity without landmarks looks straight ahead from the middle of a portrait.

        Returns:
            `torch.Tensor` of shape `(batch, 72, 2)`: in pixels of the image; [`draw_landmarks`] draws them.
        """
        conditioner = self.face_conditioner("predict_landmarks")
        height, width = as_size("height", height, 1), as_size("width", width, 1)
        if identity is None:
            raise InputError("identity is None; give a FaceIdentity or a list of them")
        steering = Steering(pose_image, pose, expression, face_box, face_index)
        for name, picture in (("image", image), ("mask_image", mask_image)):
            if picture is not None and not self._takes_picture:
                raise InputError(f"{name}= is for pipelines that begin with a picture; leave it out")
        image, mask_image = (
            None if picture is None else open_pictures(picture, name)
            for name, picture in (("image", image), ("mask_image", mask_image))
        )
        steering = self._default_steering(conditioner, steering, image, mask_image, height, width)
        return conditioner.landmarks(as_list(identity, "identity", FaceIdentity), steering, height, width)

    # what pipelines that begin with a picture do otherwise

    def _open_pictures(self, kwargs: dict[str, Any]) -> None:
        """Opens paths and URLs among the arguments of a call."""

    def _default_steering(
        self, conditioner: FaceConditioner, steering: Steering, image: Any, mask_image: Any, height: int, width: int
    ) -> Steering:
        """What steers the face where the caller says nothing else."""
        return steering

    def _crop_to_mask(self, kwargs: dict[str, Any], height: int, width: int) -> Crop | None:
        """Cuts the pictures of a call to the surroundings of the mask, if it asks for that."""
        return None

    def _blend_by_mask(self, kwargs: dict[str, Any]) -> None:
        """Has the mask applied after each step."""

    def _check_latents_of_picture(self, kwargs: dict[str, Any], is_plain: bool) -> None:
        """Raises [`InputError`] for latents that do not go with the picture of a call."""

    def _conditions_of_people(self, people: Sequence[Person], height: int, width: int) -> FaceConditions:
        conditioner = self.face_conditioner("people=")
        people, boxes = check_people(people)
        check_people_followed(self.ffrnet, people)
        people = with_identities(people, conditioner.encode_face)
        points = []
        for person in people:
            conditioner.check(person.identity)
            steering = Steering(person.pose_image, person.pose, person.expression, person.face_box)
            points.append(conditioner.drawn_points([person.identity], steering, height, width))
        # all faces in one picture: it is black where there is none
        pictures = conditioner.landmark_picture(torch.cat(points), height, width)
        regions = Regions(boxes, height // self.vae_scale_factor, width // self.vae_scale_factor)
        tokens = FaceTokens.of(conditioner, [person.identity for person in people], in_one_image=True)
        return FaceConditions(tokens, pictures.amax(0, keepdim=True), regions)

    def _call_with_face(
        self,
        prompt: str | list[str] | None,
        conditions: FaceConditions,
        scales: Mapping[str, Any],
        schedule: FaceSnapSchedule,
        kwargs: dict[str, Any],
    ) -> Any:
        """The stock pipeline with the identity: in the prompt, in the UNet's attention, in FFRNet."""
        attention_scale = scales["identity_scale"] if self.identity_attention is not None else 0.0
        landmark_scale = scales["landmark_scale"] if self.ffrnet is not None else 0.0
        if landmark_scale == 0 and not (
            any(attention_scale.values()) if isinstance(attention_scale, Mapping) else attention_scale
        ):
            return self._call_without_face(prompt, kwargs)
        if self.unet.config.get("time_cond_proj_dim") is not None and self._takes_picture:
            raise InputError(
                "unet takes the guidance scale as an input (LCM), which the loops of image-to-image and inpainting with a"
                " face do not pass; use the base model with an LCM LoRA"
            )
        call = self._for_one_call(kwargs)
        tokens = conditions.tokens
        call._identity_tokens = tokens.conditional, tokens.unconditional
        num_tokens = tokens.conditional.shape[1]
        # without identity attention the tokens are only kept from the UNet
        attention = self.identity_attention if self.identity_attention is not None else IdentityAttention(layers={})
        num_attended = num_tokens - tokens.num_left_out
        device = tokens.conditional.device  # where the pipeline computes; offloaded components are elsewhere
        context = attention.context(
            call.unet, num_attended, attention_scale, conditions.regions, tokens.num_left_out, device
        )
        attention_kwargs = {**(kwargs.get("cross_attention_kwargs") or {}), **context.as_kwargs()}
        kwargs["cross_attention_kwargs"] = attention_kwargs

        def on_step(before: float, after: float) -> None:
            is_active = schedule.identity_start <= before and after <= schedule.identity_end
            attention_kwargs.update((context if is_active else context.without_identity()).as_kwargs())

        progress = CallProgress(call.scheduler, on_step, kwargs.get("denoising_end"))
        ffrnet = None
        if self.ffrnet is not None:
            regions = None
            if conditions.regions is not None:
                regions = RegionalContext(conditions.regions.masks(tokens.num_ffrnet_tokens, device))
            ffrnet = ScheduledFFRNet(
                self.ffrnet,
                tokens.num_ffrnet_tokens,
                schedule,
                progress,
                lambda: call.do_classifier_free_guidance,
                regions,
            )
        settings = {
            "controlnet_conditioning_scale": landmark_scale,
            "control_guidance_start": schedule.landmark_start,
            "control_guidance_end": schedule.landmark_end,
        }
        call._control(ffrnet, conditions.landmark_picture, settings, num_tokens, progress, kwargs)
        return self._run(call, prompt, kwargs)

    def _call_without_face(self, prompt: str | list[str] | None, kwargs: dict[str, Any]) -> Any:
        """The stock pipeline as it is; without ControlNets, that without ControlNet where it takes all arguments."""
        if self.controlnet is not None:
            crop = None
            if kwargs.get("padding_mask_crop") is not None:
                crop = self._crop_to_mask(kwargs, *self._image_size(kwargs))
            nets, images, settings = self._further_control(kwargs)
            control: dict[str, Any] = {self._control_image_argument: images, **settings}
            is_multi = isinstance(self.controlnet, MultiControlNetModel)
            kwargs |= control if is_multi else {name: of_net for name, (of_net,) in control.items()}
            call = self._for_one_call(kwargs)
            if any(net.dtype != self.unet.dtype for net in nets):
                routed = [RoutedControlNet(net, 0, "text") for net in nets]
                call.controlnet = MultiControlNetModel(routed) if is_multi else routed[0]
            output = self._run(call, prompt, kwargs)
            return output if crop is None else _with_images(output, crop.put_back, self.image_processor)
        self._refuse_control_arguments(kwargs)
        kwargs.pop("guess_mode", None)
        takes_all = set(kwargs) <= set(inspect.signature(self._plain_class.__call__).parameters)
        if takes_all and not self._mask_is_ours:
            plain = self._plain_pipeline(kwargs)
            if kwargs.get("clip_skip") is not None:
                plain.text_encoder = with_text_model(plain.text_encoder)
            return self._run(plain, prompt, kwargs)
        height, width = self._image_size(kwargs)
        crop = self._crop_to_mask(kwargs, height, width)
        call = self._for_one_call(kwargs)
        no_settings = {
            "controlnet_conditioning_scale": 0.0,
            "control_guidance_start": 0.0,
            "control_guidance_end": 1.0,
        }
        call._control(None, torch.zeros(1, 3, height, width), no_settings, 0, None, kwargs)
        output = self._run(call, prompt, kwargs)
        return output if crop is None else _with_images(output, crop.put_back, self.image_processor)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == INTERRUPT and value and not self._is_of_call:  # stops all calls, each of which runs on a copy
            self.__dict__["_stop_requests"] = self._stop_requests + 1
        super().__setattr__(name, value)

    @property
    def _mask_is_ours(self) -> bool:
        """Whether the mask of this pipeline's UNet is left out by the stock loop, and put on here."""
        return False

    def __setstate__(self, state: dict[str, Any]) -> None:
        """For unpickling, after which an FFRNet of low rank shares the layers of the UNet that came with it."""
        self.__dict__.update(state)
        if isinstance(self.ffrnet, FFRNet) and not self.ffrnet.is_bound:
            self.ffrnet.bind(self.unet)

    def _for_one_call(self, kwargs: dict[str, Any]) -> Any:
        """A shallow copy of the pipeline for one call, which may change what it holds without others seeing it."""
        call = object.__new__(type(self))
        # past `DiffusionPipeline.__setattr__`, which would write the pipeline's config anew for each
        call.__dict__.update({**vars(self), **components_of_call(self, kwargs)}, _is_of_call=True, _origin=self)
        return call

    def _plain_pipeline(self, kwargs: dict[str, Any]) -> DiffusionPipeline:
        """The stock pipeline without ControlNet on the same components, for one call."""
        parameters = inspect.signature(self._plain_class.__init__).parameters
        components = {**self.config, **self.components, **components_of_call(self, kwargs)}
        arguments = {name: value for name, value in components.items() if name in parameters}
        if "requires_safety_checker" in arguments:  # it was warned of when this pipeline was made
            arguments["requires_safety_checker"] = False
        plain = self._plain_class(**arguments)
        plain.set_progress_bar_config(**progress_bar_config(self))
        return plain

    def _run(self, call: Any, prompt: str | list[str] | None, kwargs: dict[str, Any]) -> Any:
        """The stock `__call__` of a pipeline that was made for this call."""
        is_plain = not isinstance(call, FaceSnapMixin)
        check_batch(
            prompt,
            kwargs,
            ("image", "mask_image", "masked_image_latents") if self._takes_picture else (),
            None if is_plain else self._control_image_argument,
        )
        check_strength(call.__call__ if is_plain else super().__call__, call.scheduler, kwargs)
        self._check_latents_of_picture(kwargs, is_plain)
        requests = self._stop_requests
        has_callback = kwargs.get("callback_on_step_end") is not None
        StepEnd.add_to(kwargs, callback_tensor_inputs(call), lambda: self._stop_requests != requests)
        try:
            with restored_after_call(call.components, kwargs):
                if is_plain:
                    for name in ("height", "width"):
                        if kwargs.get(name) is not None:
                            as_size(name, kwargs[name], math.lcm(_MULTIPLE_OF_STOCK, self.vae_scale_factor))
                    return call(prompt, **kwargs)
                if self._mask_is_ours:
                    call._blend_by_mask(kwargs)
                rescale = 0.0
                if "guidance_rescale" not in stock_arguments(super().__call__):
                    rescale = kwargs.pop("guidance_rescale", 0.0)
                if rescale > 0 or has_callback:
                    guidance = Guidance(call, rescale)
                    kwargs["callback_on_step_end"] = guidance.hidden_from(kwargs["callback_on_step_end"])
                return super(FaceSnapMixin, call).__call__(prompt, **kwargs)
        finally:
            for name in SHOWN_AFTER_A_CALL:
                if hasattr(call, name):
                    # past `__setattr__`, which would stop other calls too
                    self.__dict__[name] = getattr(call, name)
            if is_model_offloaded(self):  # the stock call has put its hooks on what the copy holds
                self.maybe_free_model_hooks()

    def _control(
        self,
        ffrnet: RoutedControlNet | None,
        landmark_picture: torch.Tensor,
        own_settings: dict[str, float],
        num_tokens: int,
        progress: CallProgress | None,
        kwargs: dict[str, Any],
    ) -> None:
        """
        Puts FFRNet beside the ControlNets of this copy of the pipeline, each with its part of the context and its
        settings. The first of them tells of the call's progress.
        """
        name = self._control_image_argument
        if self.controlnet is None:  # type: ignore[has-type]
            self._refuse_control_arguments(kwargs)
            self.controlnet = ffrnet or RoutedControlNet(
                None, num_tokens, "text", progress=progress, device=execution_device(self), dtype=self.unet.dtype
            )
            kwargs[name] = landmark_picture
            kwargs |= {setting: float(value) for setting, value in own_settings.items()}
            return
        nets, images, settings = self._further_control(kwargs)
        routed = [RoutedControlNet(net, num_tokens, "text") for net in nets]
        if ffrnet is None:
            routed[0].progress = progress
        if ffrnet is not None:
            routed, images = [ffrnet, *routed], [landmark_picture, *images]
            # the caller's settings are for the caller's ControlNets
            settings = {setting: [own_settings[setting], *values] for setting, values in settings.items()}
        self.controlnet = MultiControlNetModel(routed)
        kwargs[name] = images
        kwargs |= settings

    def _further_control(self, kwargs: dict[str, Any]) -> tuple[list[Any], list[torch.Tensor], dict[str, list[float]]]:
        """The further ControlNets, with a batch of images and the settings for each of them."""
        is_multi = isinstance(self.controlnet, MultiControlNetModel)
        nets = list(self.controlnet.nets) if is_multi else [self.controlnet]
        images = self._control_images(kwargs, len(nets) if is_multi else None)
        for net, batch in zip(nets, images, strict=True):
            channels = uncompiled(net).config.conditioning_channels
            if batch.shape[1] != channels:
                raise InputError(
                    f"{self._control_image_argument} has {batch.shape[1]} channels, this ControlNet takes {channels}"
                )
        stock = inspect.signature(super().__call__).parameters
        settings = {
            setting: _for_each(setting, kwargs.get(setting, stock[setting].default), len(nets), *limits)
            for setting, limits in _CONTROL_SETTINGS.items()
        }
        for start, end in zip(settings["control_guidance_start"], settings["control_guidance_end"], strict=True):
            if start >= end:
                raise InputError(f"control_guidance_start {start:g} is not before control_guidance_end {end:g}")
        return nets, images, settings

    def _control_images(self, kwargs: dict[str, Any], count: int | None) -> list[torch.Tensor]:
        """
        The images of further ControlNets, one batch for each of them. `count` of them take a list with an image for each, or
        such a list for each prompt; a single one (`None`) takes an image, or one for each prompt.
        """
        name = self._control_image_argument
        images = kwargs.get(name)
        all_nets = f"each of the {count} further ControlNets" if (count or 1) > 1 else "the further ControlNet"
        if images is None:
            raise InputError(f"{name}= must have an image for {all_nets}")
        if count is None:
            images = [images]
        elif isinstance(images, (list, tuple)) and images and all(isinstance(item, (list, tuple)) for item in images):
            if any(len(item) != count for item in images):
                raise InputError(f"{name}= must have, for each prompt, an image for each of the {count} ControlNets")
            images = [list(of_net) for of_net in zip(*images, strict=True)]
        elif not isinstance(images, (list, tuple)) or len(images) != count:
            raise InputError(f"{name}= must have an image for {all_nets}")
        height, width = kwargs.get("height"), kwargs.get("width")
        if self._takes_picture and (height is None or width is None):
            height, width = self._image_size(dict(kwargs))
        batches: list[torch.Tensor] = []
        for item in images:
            try:
                batch = self.control_image_processor.preprocess(
                    open_pictures(item, name, any_channels=True), height, width
                )
            except InputError:
                raise
            except (ValueError, TypeError, RuntimeError) as error:
                raise InputError(f"{name} could not be read ({one_line(error)}); pass PIL images or tensors") from None
            height, width = batch.shape[-2:]  # without these, the first image says them
            batches.append(batch)
        return batches

    def _refuse_control_arguments(self, kwargs: dict[str, Any]) -> None:
        """Raises [`InputError`] for what is for further ControlNets, where there are none."""
        name = self._control_image_argument
        if kwargs.get(name) is not None:
            raise InputError(
                f"{name}= is for further ControlNets and this pipeline has none; pass controlnet= to from_pretrained"
            )
        if "controlnet_conditioning_scale" in kwargs:
            raise InputError(
                "controlnet_conditioning_scale= is for further ControlNets and this pipeline has none;"
                " set_facesnap_scale(landmark_scale=) scales FFRNet"
            )
        for name in ("control_guidance_start", "control_guidance_end"):
            if name in kwargs:
                raise InputError(
                    f"{name}= is for further ControlNets and this pipeline has none;"
                    " FaceSnapSchedule(landmark_start=, landmark_end=) says when FFRNet works"
                )

    def _check_arguments(self, kwargs: dict[str, Any], with_face: bool) -> None:
        # the stock pipelines take any keyword and ignore those that they do not know
        known = stock_arguments(super().__call__)
        plain: list[str] = (
            [] if with_face or self.controlnet is not None else stock_arguments(self._plain_class.__call__)
        )
        for name in kwargs:
            if name in known or name in plain or name in ("callback", "callback_steps"):
                continue
            if name in stock_arguments(self._plain_class.__call__):
                if name == "guidance_rescale":  # see `Guidance`
                    continue
                raise InputError(f"{name}= works only without a face and without ControlNets; leave it out")
            if name in LIMITS:
                raise InputError(f"{type(self).__name__} takes no argument {name}=; pass pose=HeadPose({name}=20)")
            names = inspect.signature(self.__call__).parameters
            close = suggestion(name, names) or f"; it takes {', '.join(names)}"
            raise InputError(f"{type(self).__name__} takes no argument {name}={close}")

    def _image_size(self, kwargs: dict[str, Any]) -> tuple[int, int]:
        """
        Height and width of the images of a call: as asked for, else those of its picture or latents, else the base
        model's. They become arguments of the call.
        """
        multiple, latents = self.vae_scale_factor, kwargs.get("latents")
        channels = self.vae.config.latent_channels
        if latents is not None and not (
            isinstance(latents, torch.Tensor) and latents.ndim == 4 and latents.shape[1] == channels
        ):
            raise InputError(f"latents must be a torch.Tensor of shape (batch, {channels}, height, width)")
        if latents is not None and not latents.is_floating_point():
            raise InputError(f"latents must be in floating point, got {latents.dtype}")
        if self._takes_picture:
            sides = picture_size(kwargs["image"], channels, multiple)
            default = tuple(side - side % multiple for side in sides)
        elif latents is not None:
            default = tuple(side * multiple for side in latents.shape[-2:])
        else:
            sample_size = self.unet.config.sample_size
            sides = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
            default = tuple(side * multiple for side in sides)
        for name, side in zip(("height", "width"), default, strict=True):
            kwargs[name] = as_size(name, side if kwargs.get(name) is None else kwargs[name], multiple)
        height, width = kwargs["height"], kwargs["width"]
        if self._takes_picture and is_latent(kwargs["image"], channels) and (height, width) != default:
            raise InputError(
                f"image= are latents of {default[0]}×{default[1]} pixels, height and width are {height}×{width}"
            )
        if latents is not None and tuple(latents.shape[-2:]) != (height // multiple, width // multiple):
            raise InputError(
                f"latents of {latents.shape[-2]}×{latents.shape[-1]} are an image of {latents.shape[-2] * multiple}×"
                f"{latents.shape[-1] * multiple} pixels, height and width are {height}×{width}; make them agree"
            )
        return height, width

    def _match_batch(
        self,
        prompt: str | list[str] | None,
        identities: Sequence[FaceIdentity],
        landmarks: torch.Tensor,
        kwargs: dict[str, Any],
    ) -> str | list[str] | None:
        """One prompt serves a batch of faces; otherwise numbers must agree."""
        prompt_embeds = kwargs.get("prompt_embeds")
        prompts = len(prompt) if isinstance(prompt, list) else 1 if prompt_embeds is None else len(prompt_embeds)
        faces = {"identity": len(identities), "landmarks": len(landmarks)}
        batch = max(prompts, *faces.values())
        for name, count in {"prompt": prompts, **faces}.items():
            if count not in (1, batch):
                raise InputError(f"{name} has {count} entries, another argument {batch}; give 1 or {batch}")
        if prompts == batch:
            return prompt
        if prompt is None:
            raise InputError(f"prompt_embeds has 1 entry, there are {batch} faces; repeat it {batch} times")
        for name in ("prompt_2", "negative_prompt", "negative_prompt_2"):
            value = kwargs.get(name)
            if isinstance(value, str) or (isinstance(value, list) and len(value) == 1):
                kwargs[name] = (value if isinstance(value, list) else [value]) * batch
        return (prompt if isinstance(prompt, list) else [prompt]) * batch


#: What heights and widths of the stock pipelines without ControlNet must be a multiple of, in pixels, whatever the VAE.
_MULTIPLE_OF_STOCK = 8

#: What a stock pipeline takes for each ControlNet, with its range.
_CONTROL_SETTINGS = {
    "controlnet_conditioning_scale": (-1e4, 1e4),
    "control_guidance_start": (0.0, 1.0),
    "control_guidance_end": (0.0, 1.0),
}


def append_tokens(prompt_embeds: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Identity tokens behind those of the text; one face, or one for every so many prompts."""
    if prompt_embeds.shape[-1] != tokens.shape[-1]:
        raise InputError(
            f"prompt_embeds have width {prompt_embeds.shape[-1]}, the identity tokens {tokens.shape[-1]};"
            " encode the prompt with this pipeline's text encoders"
        )
    tokens = tokens.to(prompt_embeds).repeat_interleave(len(prompt_embeds) // len(tokens), dim=0)
    return torch.cat([prompt_embeds, tokens], dim=1)


def _with_images(output: Any, change: Callable[..., Any], *args: Any) -> Any:
    """What a stock pipeline returns, a tuple or an object, with its images changed."""
    if isinstance(output, tuple):
        return (change(output[0], *args), *output[1:])
    output.images = change(output.images, *args)
    return output


def _for_each(name: str, value: Any, count: int, low: float, high: float) -> list[float]:
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count:
        raise InputError(
            f"{name} must be a number, or {count} for the {count} further ControlNets, got {shown(value)}"
        )
    return [as_number(name, item, low, high) for item in values]


def _read_pictures(kwargs: Mapping[str, Any]) -> None:
    """Reads the opened images among the stock pipeline's arguments, which other calls may read at the same time."""
    for name, value in kwargs.items():
        for item in value if isinstance(value, (list, tuple)) else [value]:
            if isinstance(item, PIL.Image.Image):
                try:
                    read_pixels(item)
                except (OSError, SyntaxError) as error:  # what Pillow's decoders raise for a damaged file
                    raise InputError(f"{name}= cannot be decoded ({one_line(error)}); pass an intact image") from error


def _refuse_steering_without_face(steering: Steering, landmarks: Any) -> None:
    given = [*steering.given, *(["landmarks"] if landmarks is not None else [])]
    if given:
        raise InputError(f"{given[0]}= steers a face; pass face_image= or identity= too")
    if steering.face_index is not None:
        raise InputError("face_index= picks a face from face_image= or pose_image=; pass one of them")
