"""How a face gets into a stock ControlNet pipeline."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from .._upstream import is_model_offloaded, progress_bar_config, register_in_diffusers, with_text_model
from ..adapter.lifecycle import FaceSnapAdapterMixin
from ..conditioner import FaceConditioner
from ..errors import InputError
from ..faces.expression import Expression
from ..faces.pose import HeadPose
from ..identity import FaceIdentity
from ..models.attention import IdentityAttention
from ..models.regions import RegionalContext, Regions
from ..steering import Steering, as_landmarks, as_list
from .control import RoutedControlNet, ScheduledFFRNet
from .people import Person, check_people
from .schedule import CallProgress, FaceSnapSchedule
from .signatures import stock_arguments, with_stock_signature


@dataclass(frozen=True)
class FaceConditions:
    r"""
    What a face is to one call of a stock pipeline.

    Attributes:
        tokens (`torch.Tensor` of shape `(batch, tokens, width)`): Identity tokens; those of several people side by side.
        unconditional_tokens (`torch.Tensor` of shape `(batch, tokens, width)`): For classifier-free guidance.
        landmark_picture (`torch.Tensor` of shape `(batch, 3, height, width)`): For FFRNet, in `[0, 1]`.
        regions ([`Regions`], *optional*): Where each of several people is.
    """

    tokens: torch.Tensor
    unconditional_tokens: torch.Tensor
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

    #: Identity tokens and unconditional tokens, each (batch, tokens, width): only on the copy that a call runs on.
    _identity_tokens: tuple[torch.Tensor, torch.Tensor] | None = None

    #: When the parts of an adapter work; see [`set_facesnap_schedule`].
    _facesnap_schedule = FaceSnapSchedule()

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        if hasattr(cls, "_plain_class"):
            for name in ("__call__", "encode_prompt"):
                setattr(cls, name, with_stock_signature(cls, name))
            register_in_diffusers(cls)

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs: Any) -> Any:
        r"""
        A pipeline of this class from the components of another one: shared, not copied, each in its own dtype. An
        adapter, its scales and the face analyzer come along.

        Args:
            pipeline (`DiffusionPipeline`): Any pipeline of the same Stable Diffusion family.
            kwargs: Components that replace those of `pipeline`; `dtype` to convert all of them, in place.
        """
        dtype = kwargs.pop("dtype", None)
        if not isinstance(pipeline, DiffusionPipeline):
            raise InputError(f"pipeline must be a DiffusionPipeline, got {type(pipeline).__name__}")
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
            face_index (`int`, *optional*): Which face to take where photos show several; the largest by default.
            pose_image (photo or list of photos, *optional*): Another photo whose pose, expression and framing the
                image takes. It may show anyone: the proportions stay those of the reference.
            pose ([`HeadPose`] or list, *optional*): Yaw, pitch and roll in degrees.
            expression (`str`, `dict`, [`Expression`] or list, *optional*): A preset such as `"smile"`, or ARKit weights.
            face_box (`tuple` or list of them, *optional*): Where the face goes: left, top, right, bottom as shares of
                the image, for the same face seen from the front.
            landmarks (`torch.Tensor` of shape `([batch,] 72, 2)`, *optional*): Landmarks in pixels of the image, used as
                they are; for InstantID also its five key points `([batch,] 5, 2)`.
            people (`list[`[`Person`]`]`, *optional*): Several people in one image, each with an identity, a face box
                and, if you like, a pose and an expression; in place of all of the above but the prompt.
            facesnap_schedule (`str` or [`FaceSnapSchedule`], *optional*): When the parts of the adapter work in this
                call: `"exact"`, `"fast"` or your own; by default as [`set_facesnap_schedule`] says.
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
        if people is not None:
            own = {"face_image": face_image, "identity": identity, "face_index": face_index, "landmarks": landmarks}
            given = [*(name for name, value in own.items() if value is not None), *steering.given]
            if given:
                raise InputError(f"{given[0]}= is for one person, people= for several; give each Person its own")
            height, width = self._image_size(kwargs)
            conditions = self._conditions_of_people(people, height, width)
        elif face_image is None and identity is None:
            _refuse_steering_without_face(steering, landmarks)
            return self._call_without_face(prompt, kwargs)
        else:
            if face_index is not None and face_image is None and pose_image is None:
                raise InputError("face_index= picks a face from face_image= or pose_image=; pass one of them")
            if landmarks is not None and steering.given:
                raise InputError(
                    f"landmarks= are used as they are, so {steering.given[0]}= has no effect; pass one of the two"
                )
            conditioner = self.face_conditioner("face_image=" if identity is None else "identity=")
            num_prompts = len(prompt) if isinstance(prompt, list) else 1
            identities = conditioner.identities(face_image, identity, face_index, num_prompts)
            height, width = self._image_size(kwargs)
            if landmarks is None:
                points = conditioner.drawn_points(identities, steering, height, width)
            else:
                counts = (5, 72) if conditioner.config.landmark_style == "instantid5" else (72,)
                points = as_landmarks(landmarks, "landmarks", counts)[..., :2]
            prompt = self._match_batch(prompt, identities, points, kwargs)
            picture = conditioner.landmark_picture(points, height, width)
            conditions = FaceConditions(*conditioner.tokens(identities), picture)
        return self._call_with_face(prompt, conditions, schedule, kwargs)

    def set_facesnap_schedule(self, schedule: str | FaceSnapSchedule) -> None:
        r"""
        Sets when the parts of the adapter work in the course of a call.

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
    ) -> torch.Tensor:
        r"""
        The landmarks by which a call with the same arguments steers: the identity's proportions, with its own pose and
        expression or those that the arguments ask for.

        Without `face_box` the face stands as in the pose image, else as in the reference photo, the photo scaled to
        cover the image. An identity without landmarks looks straight ahead from the middle of a portrait.

        Returns:
            `torch.Tensor` of shape `(batch, 72, 2)`: in pixels of the image; [`draw_landmarks`] draws them.
        """
        conditioner = self.face_conditioner("predict_landmarks")
        for name, size in (("height", height), ("width", width)):
            if not isinstance(size, int) or size <= 0:
                raise InputError(f"{name} must be a positive number of pixels, got {size!r}")
        if identity is None:
            raise InputError("identity is None; give a FaceIdentity or a list of them")
        steering = Steering(pose_image, pose, expression, face_box, face_index)
        return conditioner.landmarks(as_list(identity, "identity", FaceIdentity), steering, height, width)

    def _conditions_of_people(self, people: Sequence[Person], height: int, width: int) -> FaceConditions:
        conditioner = self.face_conditioner("people=")
        people, boxes = check_people(people)
        points = []
        for person in people:
            conditioner.check(person.identity)
            steering = Steering(person.pose_image, person.pose, person.expression, person.face_box)
            points.append(conditioner.drawn_points([person.identity], steering, height, width))
        # all faces in one picture: it is black where there is none
        pictures = conditioner.landmark_picture(torch.cat(points), height, width)
        tokens, unconditional_tokens = conditioner.tokens([person.identity for person in people])
        regions = Regions(boxes, height // self.vae_scale_factor, width // self.vae_scale_factor)
        return FaceConditions(
            tokens.flatten(0, 1)[None],  # one image, with the tokens of all people one after the other
            unconditional_tokens.flatten(0, 1)[None],
            pictures.amax(0, keepdim=True),
            regions,
        )

    def _call_with_face(
        self,
        prompt: str | list[str] | None,
        conditions: FaceConditions,
        schedule: FaceSnapSchedule,
        kwargs: dict[str, Any],
    ) -> Any:
        """The stock pipeline with the identity: in the prompt, in the UNet's attention, in FFRNet."""
        scale = self.facesnap_scale
        attention_scale = scale["identity_scale"] if self.identity_attention is not None else 0.0
        landmark_scale = scale["landmark_scale"] if self.ffrnet is not None else 0.0
        if landmark_scale == 0 and not (
            any(attention_scale.values()) if isinstance(attention_scale, Mapping) else attention_scale
        ):
            return self._call_without_face(prompt, kwargs)
        call = self._for_one_call()
        call._identity_tokens = conditions.tokens, conditions.unconditional_tokens
        num_tokens = conditions.tokens.shape[1]
        # without identity attention the tokens are only kept from the UNet
        attention = self.identity_attention if self.identity_attention is not None else IdentityAttention(layers={})
        context = attention.context(self.unet, num_tokens, attention_scale, conditions.regions)
        attention_kwargs = {**(kwargs.get("cross_attention_kwargs") or {}), **context.as_kwargs()}
        kwargs["cross_attention_kwargs"] = attention_kwargs

        def on_step(done: float) -> None:
            is_active = schedule.identity_start <= done < schedule.identity_end
            attention_kwargs.update((context if is_active else context.without_identity()).as_kwargs())

        progress = CallProgress(call.scheduler, on_step)
        ffrnet = None
        if self.ffrnet is not None:
            regions = None
            if conditions.regions is not None:
                regions = RegionalContext(conditions.regions.masks(num_tokens, self._execution_device))
            ffrnet = ScheduledFFRNet(
                self.ffrnet, num_tokens, schedule, progress, lambda: call.do_classifier_free_guidance, regions
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
            return self._run(self._for_one_call(), prompt, kwargs)
        self._refuse_control_arguments(kwargs)
        kwargs.pop("guess_mode", None)
        if set(kwargs) <= set(inspect.signature(self._plain_class.__call__).parameters):
            plain = self._plain_pipeline()
            if kwargs.get("clip_skip") is not None:
                plain.text_encoder = with_text_model(plain.text_encoder)
            return self._run(plain, prompt, kwargs)
        height, width = self._image_size(kwargs)
        call = self._for_one_call()
        no_settings = {**_CONTROL_SETTINGS, "controlnet_conditioning_scale": 0.0}
        call._control(None, torch.zeros(1, 3, height, width), no_settings, 0, None, kwargs)
        return self._run(call, prompt, kwargs)

    def _for_one_call(self) -> Any:
        """A shallow copy of the pipeline for one call, which may change what it holds without others seeing it."""
        call = copy.copy(self)
        call.scheduler = copy.deepcopy(self.scheduler)
        return call

    def _plain_pipeline(self) -> DiffusionPipeline:
        """The stock pipeline without ControlNet on the same components, for one call."""
        parameters = inspect.signature(self._plain_class.__init__).parameters
        components = {**self.config, **self.components, "scheduler": copy.deepcopy(self.scheduler)}
        arguments = {name: value for name, value in components.items() if name in parameters}
        if "requires_safety_checker" in arguments:  # it was warned of when this pipeline was made
            arguments["requires_safety_checker"] = False
        plain = self._plain_class(**arguments)
        plain.set_progress_bar_config(**progress_bar_config(self))
        return plain

    def _run(self, call: Any, prompt: str | list[str] | None, kwargs: dict[str, Any]) -> Any:
        """The stock `__call__` of a pipeline that was made for this call."""
        try:
            if isinstance(call, FaceSnapMixin):
                return super(FaceSnapMixin, call).__call__(prompt, **kwargs)
            return call(prompt, **kwargs)
        finally:
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
        if self.controlnet is None:
            self._refuse_control_arguments(kwargs)
            self.controlnet = ffrnet or RoutedControlNet(
                None, num_tokens, "text", progress=progress, device=self._execution_device, dtype=self.unet.dtype
            )
            kwargs[name] = landmark_picture
            kwargs |= {setting: float(value) for setting, value in own_settings.items()}
            return
        is_multi = isinstance(self.controlnet, MultiControlNetModel)
        nets = list(self.controlnet.nets) if is_multi else [self.controlnet]
        images = kwargs.get(name) if is_multi else [kwargs.get(name)]
        if kwargs.get(name) is None or not isinstance(images, (list, tuple)) or len(images) != len(nets):
            raise InputError(f"{name}= must have an image for each of the {len(nets)} further ControlNets")
        images = [self.control_image_processor.preprocess(item, kwargs["height"], kwargs["width"]) for item in images]
        routed = [RoutedControlNet(net, num_tokens, "text") for net in nets]
        if ffrnet is None:
            routed[0].progress = progress
        settings = {
            setting: _for_each(kwargs.get(setting, default), len(nets), setting)
            for setting, default in _CONTROL_SETTINGS.items()
        }
        if ffrnet is not None:
            routed, images = [ffrnet, *routed], [landmark_picture, *images]
            # the caller's settings are for the caller's ControlNets
            settings = {setting: [own_settings[setting], *values] for setting, values in settings.items()}
        self.controlnet = MultiControlNetModel(routed)
        kwargs[name] = images
        kwargs |= {setting: [float(value) for value in values] for setting, values in settings.items()}

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

    def _check_arguments(self, kwargs: dict[str, Any], with_face: bool) -> None:
        # the stock pipelines take any keyword and ignore those that they do not know
        known = stock_arguments(super().__call__)
        plain = [] if with_face or self.controlnet is not None else stock_arguments(self._plain_class.__call__)
        for name in kwargs:
            if name in known or name in plain or name in ("callback", "callback_steps"):
                continue
            if name in stock_arguments(self._plain_class.__call__):
                raise InputError(f"{name}= works only without a face and without ControlNets; leave it out")
            raise InputError(f"{type(self).__name__} takes no argument {name}=; it takes {', '.join(known)}")

    def _image_size(self, kwargs: dict[str, Any]) -> tuple[int, int]:
        height, width = kwargs.get("height"), kwargs.get("width")
        initial = kwargs.get("image") if self._control_image_argument != "image" else None
        if initial is not None and (height is None or width is None):
            initial = initial[0] if isinstance(initial, (list, tuple)) else initial
            height, width = self.image_processor.get_default_height_width(initial, height, width)
        sample_size = self.unet.config.sample_size
        sample_height, sample_width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
        height = sample_height * self.vae_scale_factor if height is None else height
        width = sample_width * self.vae_scale_factor if width is None else width
        for name, size in (("height", height), ("width", width)):
            if not isinstance(size, int) or size <= 0 or size % self.vae_scale_factor:
                raise InputError(f"{name} must be a positive multiple of {self.vae_scale_factor}, got {size!r}")
        kwargs["height"], kwargs["width"] = height, width
        return height, width

    def _match_batch(
        self,
        prompt: str | list[str] | None,
        identities: Sequence[FaceIdentity],
        landmarks: torch.Tensor,
        kwargs: dict[str, Any],
    ) -> str | list[str] | None:
        """One prompt serves a batch of faces; otherwise numbers must agree."""
        if prompt is not None and not isinstance(prompt, (str, list)):
            raise InputError(f"prompt must be a string or a list of strings, got {type(prompt).__name__}")
        if prompt == []:
            raise InputError("prompt is an empty list; give at least one")
        prompt_embeds = kwargs.get("prompt_embeds")
        if prompt_embeds is not None and not isinstance(prompt_embeds, torch.Tensor):
            raise InputError(f"prompt_embeds must be a torch.Tensor, got {type(prompt_embeds).__name__}")
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
            if isinstance(kwargs.get(name), str):
                kwargs[name] = [kwargs[name]] * batch
        return (prompt if isinstance(prompt, list) else [prompt]) * batch


#: What a stock pipeline takes for each ControlNet, with its default.
_CONTROL_SETTINGS = {"controlnet_conditioning_scale": 1.0, "control_guidance_start": 0.0, "control_guidance_end": 1.0}


def append_tokens(prompt_embeds: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Identity tokens behind those of the text; one face, or one for every so many prompts."""
    if prompt_embeds.shape[-1] != tokens.shape[-1]:
        raise InputError(
            f"prompt_embeds have width {prompt_embeds.shape[-1]}, the identity tokens {tokens.shape[-1]};"
            " encode the prompt with this pipeline's text encoders"
        )
    tokens = tokens.to(prompt_embeds).repeat_interleave(len(prompt_embeds) // len(tokens), dim=0)
    return torch.cat([prompt_embeds, tokens], dim=1)


def _for_each(value: Any, count: int, name: str) -> list[float]:
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count or not all(isinstance(item, (int, float)) for item in values):
        raise InputError(f"{name} must be a number, or {count} for the {count} further ControlNets, got {value!r}")
    return values


def _refuse_steering_without_face(steering: Steering, landmarks: Any) -> None:
    given = [*steering.given, *(["landmarks"] if landmarks is not None else [])]
    if given:
        raise InputError(f"{given[0]}= steers a face; pass face_image= or identity= too")
    if steering.face_index is not None:
        raise InputError("face_index= picks a face from face_image= or pose_image=; pass one of them")
