from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

from ..config import FaceSnapConfig
from ..errors import FaceEncoderMismatchError, InputError
from ..faces.detection import find_face
from ..faces.expression import Expression
from ..faces.key_points import draw_for_style
from ..faces.pose import HeadPose
from ..identity import FaceIdentity
from ..models.attention import IdentityAttention
from ..models.regions import Regions, regional_context
from .control import RoutedControlNet
from .face_encoding import FaceEncodingMixin
from .people import Person, check_people
from .steering import as_boxes, as_expressions, as_landmarks, as_list, steer


class FaceSnapMixin(FaceEncodingMixin):
    """Brings a face into a stock ControlNet pipeline, as identity tokens and a landmark image; that one does the rest."""

    #: The name under which the stock pipeline takes the ControlNet's image.
    _control_image_argument = "control_image"

    #: Identity tokens and unconditional tokens, each (batch, tokens, width), for the duration of a call.
    _identity_tokens: tuple[torch.Tensor, torch.Tensor] | None = None

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
            new_pipeline.face_analyzer = pipeline.face_analyzer
            new_pipeline._default_analyzer = pipeline._default_analyzer
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
                they are.
            people (`list[`[`Person`]`]`, *optional*): Several people in one image, each with an identity, a face box
                and, if you like, a pose and an expression; in place of all of the above but the prompt.
            kwargs: All arguments of the stock pipeline, such as `negative_prompt`, `num_inference_steps`,
                `guidance_scale`, `generator`, `height` and `width`. `controlnet_conditioning_scale` and the
                ControlNet's images are for further ControlNets; [`set_facesnap_scale`] weighs FaceSnap.

        Returns:
            What the stock pipeline returns.

        Raises:
            NoFaceFoundError: A photo shows no face.
            AdapterError: A face is given, but no adapter is loaded.
            FaceEncoderMismatchError: The face was encoded by another recogniser than the adapter was trained with.
            InputError: An argument has a wrong type, shape, range or length.
        """
        self._check_arguments(kwargs)
        steering = {"pose_image": pose_image, "pose": pose, "expression": expression, "face_box": face_box}
        asked = [name for name, value in steering.items() if value is not None]
        if people is not None:
            given = {"face_image": face_image, "identity": identity, "face_index": face_index, "landmarks": landmarks}
            given |= steering
            return self._call_with_people(prompt, people, [k for k, v in given.items() if v is not None], kwargs)
        if face_index is not None and face_image is None and pose_image is None:
            raise InputError("face_index= picks a face from face_image= or pose_image=; pass one of them")
        if face_image is None and identity is None:
            if asked or landmarks is not None:
                raise InputError(f"{[*asked, 'landmarks'][0]}= steers a face; pass face_image= or identity= too")
            with self._without_face(kwargs):
                return super().__call__(prompt, **kwargs)
        if landmarks is not None and asked:
            raise InputError(f"landmarks= are used as they are, so {asked[0]}= has no effect; pass one of the two")

        identities = self._identities(face_image, identity, face_index, prompt)
        height, width = self._image_size(kwargs)
        if landmarks is None:
            points = self.predict_landmarks(identities, height=height, width=width, face_index=face_index, **steering)
        else:
            points = as_landmarks(landmarks, "landmarks")[..., :2]
        prompt = self._match_batch(prompt, identities, points, kwargs)
        style = self._require_adapter("landmarks=").landmark_style
        with self._with_face(identities, draw_for_style(style, points.float(), height, width), kwargs):
            return super().__call__(prompt, **kwargs)

    def _call_with_people(
        self, prompt: str | list[str] | None, people: Sequence[Person], others: list[str], kwargs: dict[str, Any]
    ) -> Any:
        if others:
            raise InputError(f"{others[0]}= is for one person, people= for several; give each Person its own")
        config = self._require_adapter("people=")
        people, boxes = check_people(people)
        height, width = self._image_size(kwargs)
        points = []
        for person in people:
            _check_identity(person.identity, config)
            steering = {"pose_image": person.pose_image, "pose": person.pose, "expression": person.expression}
            points.append(
                self.predict_landmarks(
                    person.identity, face_box=person.face_box, height=height, width=width, **steering
                )
            )
        # all faces in one picture: it is black where there is none
        images = draw_for_style(config.landmark_style, torch.cat(points).float(), height, width)
        regions = Regions(boxes, height // self.vae_scale_factor, width // self.vae_scale_factor)
        prompt = self._match_batch(prompt, [people[0].identity], points[0], kwargs)
        with self._with_face([person.identity for person in people], images.amax(0, keepdim=True), kwargs, regions):
            return super().__call__(prompt, **kwargs)

    def encode_prompt(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor | None, ...]:
        """As in the stock pipeline; while a face is in play, the identity tokens follow the text."""
        prompt_embeds, negative_prompt_embeds, *pooled = super().encode_prompt(*args, **kwargs)
        if self._identity_tokens is not None:
            tokens, unconditional_tokens = self._identity_tokens
            prompt_embeds = append_tokens(prompt_embeds, tokens)
            if negative_prompt_embeds is not None:
                negative_prompt_embeds = append_tokens(negative_prompt_embeds, unconditional_tokens)
        return (prompt_embeds, negative_prompt_embeds, *pooled)

    @torch.no_grad()
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
        config = self._require_adapter("predict_landmarks")
        for name, size in (("height", height), ("width", width)):
            if not isinstance(size, int) or size <= 0:
                raise InputError(f"{name} must be a positive number of pixels, got {size!r}")
        if identity is None:
            raise InputError("identity is None; give a FaceIdentity or a list of them")
        predictor = self._landmark_predictor()
        photos = as_list(pose_image, "pose_image")
        asked = {
            "identity": as_list(identity, "identity", FaceIdentity),
            "pose_image": [
                find_face(
                    photo, self._analyzer(config), face_index, f"pose_image[{i}]" if len(photos) > 1 else "pose_image"
                )
                for i, photo in enumerate(photos)
            ],
            "pose": as_list(pose, "pose", HeadPose),
            "expression": as_expressions(expression),
            "face_box": as_boxes(face_box),
        }
        batch = max(len(values) for values in asked.values())
        for name, values in asked.items():
            if len(values) not in (0, 1, batch):
                raise InputError(f"{name} has {len(values)} entries, another argument {batch}; give 1 or {batch}")
        images: list[list[Any]] = [
            [None if not values else values[0] if len(values) == 1 else values[i] for values in asked.values()]
            for i in range(batch)
        ]
        return torch.cat([steer(predictor, height, width, *image) for image in images])

    def _check_arguments(self, kwargs: dict[str, Any]) -> None:
        # the stock pipelines take any keyword and ignore those that they do not know
        known = [name for name, p in inspect.signature(super().__call__).parameters.items() if p.kind != p.VAR_KEYWORD]
        for name in kwargs:
            if name not in known and name not in ("callback", "callback_steps"):
                raise InputError(f"{type(self).__name__} takes no argument {name}=; it takes {', '.join(known)}")

    def _identities(
        self, face_image: Any, identity: Any, face_index: int | None, prompt: str | list[str] | None
    ) -> list[FaceIdentity]:
        config = self._require_adapter("face_image=" if identity is None else "identity=")
        if face_image is not None and identity is not None:
            raise InputError("face_image= and identity= are both given; pass one of the two")
        if identity is not None:
            identities = as_list(identity, "identity", FaceIdentity)
        elif isinstance(face_image, (list, tuple)) and any(isinstance(item, (list, tuple)) for item in face_image):
            people = [item if isinstance(item, (list, tuple)) else [item] for item in face_image]
            identities = [self.encode_face(list(photos), face_index=face_index) for photos in people]
        else:
            count = len(face_image) if isinstance(face_image, (list, tuple)) else 1
            if isinstance(prompt, list) and count == len(prompt) > 1:
                raise InputError(
                    f"face_image has {count} photos for {count} prompts: one person or {count}? Pass [[photo, photo]]"
                    " for one person, [[photo], [photo]] for one person a prompt"
                )
            identities = [self.encode_face(face_image, face_index=face_index)]
        for item in identities:
            _check_identity(item, config)
        return identities

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

    @contextmanager
    def _with_face(
        self,
        identities: Sequence[FaceIdentity],
        landmark_image: torch.Tensor,
        kwargs: dict[str, Any],
        regions: Regions | None = None,
    ) -> Iterator[None]:
        """While this lasts, the stock pipeline works with the identity: in the prompt, in the UNet, in FFRNet."""
        attention_scale = self.facesnap_scale["identity"] if self.identity_attention is not None else 0.0
        landmark_scale = self.facesnap_scale["landmarks"] if self.ffrnet is not None else 0.0
        if landmark_scale == 0 and attention_scale == 0:
            with self._without_face(kwargs):
                yield
            return

        tokens = self._mix(identities)
        if regions is not None:  # one image, with the tokens of all people one after the other
            tokens = (tokens[0].flatten(0, 1)[None], tokens[1].flatten(0, 1)[None])
        num_tokens = tokens[0].shape[1]
        attention = self.identity_attention if self.identity_attention is not None else self._no_identity_attention
        ffrnet = None
        if self.ffrnet is not None:
            ffrnet = RoutedControlNet(self.ffrnet, num_tokens, "identity")
        with (
            attention.attached(self.unet, num_tokens, attention_scale, regions),
            regional_context(self.ffrnet, regions),
            self._controlled_by(ffrnet, landmark_image, landmark_scale, num_tokens, kwargs),
        ):
            self._identity_tokens = tokens
            try:
                yield
            finally:
                self._identity_tokens = None

    @contextmanager
    def _without_face(self, kwargs: dict[str, Any]) -> Iterator[None]:
        """While this lasts, the stock pipeline works as it is, or as one without ControlNet if there is none."""
        if self.controlnet is not None:
            yield
            return
        kwargs.pop("guess_mode", None)
        height, width = self._image_size(kwargs)
        with self._controlled_by(None, torch.zeros(1, 3, height, width), 0.0, 0, kwargs):
            yield

    @contextmanager
    def _controlled_by(
        self,
        ffrnet: RoutedControlNet | None,
        landmark_image: torch.Tensor,
        scale: float,
        num_tokens: int,
        kwargs: dict[str, Any],
    ) -> Iterator[None]:
        """While this lasts, FFRNet stands beside the pipeline's own ControlNets, each with its part of the context."""
        own_controlnet = self.controlnet
        own_images = kwargs.get(self._control_image_argument)
        controlnet: Any
        if own_controlnet is None:
            if own_images is not None:
                raise InputError(
                    f"{self._control_image_argument}= is for further ControlNets and this pipeline has none;"
                    " pass controlnet= to from_pretrained"
                )
            if "controlnet_conditioning_scale" in kwargs:
                raise InputError(
                    "controlnet_conditioning_scale= is for further ControlNets and this pipeline has none;"
                    " set_facesnap_scale(landmarks=) weighs FFRNet"
                )
            controlnet = ffrnet or RoutedControlNet(None, num_tokens, "text", self.unet.device, self.unet.dtype)
            kwargs[self._control_image_argument] = landmark_image
            kwargs["controlnet_conditioning_scale"] = float(scale)
        else:
            nets = list(own_controlnet.nets) if isinstance(own_controlnet, MultiControlNetModel) else [own_controlnet]
            routed = [RoutedControlNet(net, num_tokens, "text") for net in nets]
            images = own_images if isinstance(own_controlnet, MultiControlNetModel) else [own_images]
            if own_images is None or not isinstance(images, (list, tuple)) or len(images) != len(nets):
                raise InputError(
                    f"{self._control_image_argument}= must have an image for each of the {len(nets)} further ControlNets"
                )
            images = [
                self.control_image_processor.preprocess(item, kwargs["height"], kwargs["width"]) for item in images
            ]
            scales = _for_each(
                kwargs.get("controlnet_conditioning_scale", 1.0), len(nets), "controlnet_conditioning_scale"
            )
            starts = _for_each(kwargs.get("control_guidance_start", 0.0), len(nets), "control_guidance_start")
            ends = _for_each(kwargs.get("control_guidance_end", 1.0), len(nets), "control_guidance_end")
            if ffrnet is not None:
                routed, images = [ffrnet, *routed], [landmark_image, *images]
                scales, starts, ends = [scale, *scales], [starts[0], *starts], [ends[0], *ends]
            controlnet = MultiControlNetModel(routed)
            kwargs[self._control_image_argument] = images
            kwargs["controlnet_conditioning_scale"] = [float(value) for value in scales]
            kwargs["control_guidance_start"], kwargs["control_guidance_end"] = starts, ends
        self.controlnet = controlnet
        try:
            yield
        finally:
            self.controlnet = own_controlnet
            # the stock pipeline has put its offload hooks back, on what stood in for the ControlNet
            self.maybe_free_model_hooks()

    def _mix(self, identities: Sequence[FaceIdentity]) -> tuple[torch.Tensor, torch.Tensor]:
        """Identity tokens and unconditional tokens, each (batch, tokens, width)."""
        device, dtype = self._execution_device, self.mixer.dtype
        unconditional = torch.tensor([False, True], device=device)
        mixed = []
        for identity in identities:
            embeds = identity.face_embeds
            if identity.photo_embeds is not None and self.mixer.config.get("per_photo", False):
                embeds = identity.photo_embeds
            embeds = torch.stack([embeds.to(device, dtype)] * 2)
            states = identity.image_hidden_states
            if states is not None:
                states = states.to(device, dtype).expand(2, -1, -1)
            mixed.append(self.mixer(embeds, states, unconditional))
        if len({tokens.shape for tokens in mixed}) > 1:
            raise InputError(
                "identities come from different numbers of photos, of which each gives tokens; use as many"
            )
        tokens, unconditional_tokens = torch.stack(mixed).unbind(dim=1)
        return tokens, unconditional_tokens

    @property
    def _no_identity_attention(self) -> IdentityAttention:
        """Keeps the identity tokens out of the UNet when the adapter was loaded without identity attention."""
        if not hasattr(self, "_token_stripper"):
            self._token_stripper = IdentityAttention(layers={})
        return self._token_stripper


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


def _check_identity(identity: FaceIdentity, config: FaceSnapConfig) -> None:
    if identity.face_encoder != config.face_encoder:
        raise FaceEncoderMismatchError(
            f"identity was made by {identity.face_encoder}, the adapter was trained with {config.face_encoder};"
            " encode the face again with encode_face"
        )
    if config.face_embed_dim not in (None, len(identity.face_embeds)):
        raise FaceEncoderMismatchError(
            f"identity has an embedding of {len(identity.face_embeds)} numbers, the adapter takes"
            f" {config.face_embed_dim}; encode the face again with encode_face"
        )
    if not config.normalized_embeds and abs(float(identity.face_embeds.norm()) - 1) < 1e-3:
        raise FaceEncoderMismatchError(
            "identity has an embedding of unit length, the adapter takes them as long as the recogniser gives them;"
            " encode the face again with InsightFaceAnalyzer(..., normalize=False) as face_analyzer"
        )
    if config.image_encoder is not None and identity.image_encoder != config.image_encoder:
        raise FaceEncoderMismatchError(
            f"identity has image features of {identity.image_encoder}, the adapter was trained with those of"
            f" {config.image_encoder}; encode the face again with encode_face"
        )
