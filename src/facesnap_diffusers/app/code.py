"""The Python code that makes a picture of the app again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..adapter.config import DEFAULT_SCALES
from .photos import SentPhotos
from .picture_settings import PersonSettings, PictureSettings


_CLASSES = {"text": "FaceSnap{}Pipeline", "image": "FaceSnap{}Img2ImgPipeline", "inpaint": "FaceSnap{}InpaintPipeline"}


def picture_code(
    settings: PictureSettings,
    sent: Sequence[SentPhotos],
    *,
    base: str | None = None,
    adapter: str | None = None,
    is_xl: bool = False,
    dtype: str = "float32",
    device: str = "cpu",
    scales: Mapping[str, float] = DEFAULT_SCALES,
) -> str:
    r"""
    Code that makes a picture, in the reader's own Python. Photos are named by placeholders, such as `"photo.jpg"`.

    Args:
        settings ([`PictureSettings`]): What the picture was made from.
        sent (`Sequence[SentPhotos]`): What each person was made from.
        base (`str`, *optional*), adapter (`str`, *optional*): The model; the nano model without a base.
        is_xl (`bool`): Whether the base is of Stable Diffusion XL's kind.
        dtype (`str`), device (`str`): How the model was loaded, and where it runs: `"float16"`, `"cuda"`.
        scales (`dict[str, float]`): The scales of the adapter as loaded; those of the settings are written where they
            differ.
    """
    classname = _CLASSES[settings.mode].format("XL" if is_xl else "")
    names: set[str] = set()
    lines: list[str] = []
    if base is None:
        names.add("load_nano_pipeline")
        lines.append(f"pipe = load_nano_pipeline({'' if dtype == 'float32' else f'dtype=torch.{dtype}'})")
        if settings.mode != "text":
            names.add(classname)
            lines.append(f"pipe = {classname}.from_pipe(pipe)")
    else:
        names.add(classname)
        loader = "from_single_file" if base.endswith((".safetensors", ".ckpt")) else "from_pretrained"
        lines.append(f"pipe = {classname}.{loader}({_quoted(base)}, dtype=torch.{dtype})")
        lines.append(f"pipe.load_facesnap_adapter({_quoted(adapter) if adapter else ''})")
    if device != "cpu":
        lines.append(f"pipe.to({_quoted(device)})")
    lines += _identities(sent, names, is_nano=base is None)
    size = f"({settings.width}, {settings.height}), Image.Resampling.LANCZOS"
    if settings.mode != "text":
        lines.append(f'start = ImageOps.fit(load_image("start.png"), {size})')
    if settings.mode == "inpaint":
        lines.append(f'mask = ImageOps.fit(load_image("mask.png").convert("L"), {size})')
    arguments = _arguments(settings, names, scales)
    lines += ["image = pipe(", *(f"    {argument}," for argument in arguments), ").images[0]"]
    lines.append('image.save("picture.png")')

    imports = ["import torch"]
    if settings.mode != "text":
        imports += ["from diffusers.utils import load_image", "from PIL import Image, ImageOps"]
    imports.append(f"from facesnap_diffusers import {', '.join(sorted(names))}")
    if base is None and any(photos.photos for photos in sent):
        imports.append("from facesnap_diffusers.nano.photos import as_rendered")
    return "\n".join([*imports, "", *lines, ""])


def _identities(sent: Sequence[SentPhotos], names: set[str], is_nano: bool) -> list[str]:
    lines = []
    for number, photos in enumerate(sent):
        variable, suffix = _variable(number, len(sent)), "" if len(sent) == 1 else f"-{number + 1}"
        if photos.sample is not None:
            names.add("nano_people")
            lines.append(f"{variable} = next(p.identity for p in nano_people() if p.name == {_quoted(photos.sample)})")
            continue
        count = len(photos.photos)
        files = [f'"photo{suffix}{"" if count == 1 else chr(ord("a") + i)}.jpg"' for i in range(count)]
        encoded = f"pipe.encode_face([{', '.join(files)}])"
        lines.append(f"{variable} = {f'as_rendered({encoded})' if is_nano else encoded}")
    return lines


def _arguments(settings: PictureSettings, names: set[str], scales: Mapping[str, float]) -> list[str]:
    arguments = [_quoted(settings.prompt)]
    if settings.negative_prompt:
        arguments.append(f"negative_prompt={_quoted(settings.negative_prompt)}")
    if len(settings.people) == 1:
        arguments += ["identity=person", *_steering(settings.people[0], names)]
    else:
        names.add("Person")
        people = [
            ", ".join([f"Person({_variable(number, 2)}", *_steering(person, names)]) + ")"
            for number, person in enumerate(settings.people)
        ]
        arguments.append(f"people=[{', '.join(people)}]")
    if settings.mode != "text":
        arguments += ["image=start", f"strength={settings.strength!r}"]
    if settings.mode == "inpaint":
        arguments.append("mask_image=mask")
    for name in ("identity_scale", "landmark_scale"):
        if getattr(settings, name) != scales[name]:
            arguments.append(f"{name}={getattr(settings, name)!r}")
    if settings.schedule != "exact":
        arguments.append(f'facesnap_schedule="{settings.schedule}"')
    return [
        *arguments,
        f"num_inference_steps={settings.steps}",
        f"guidance_scale={settings.guidance_scale!r}",
        f"height={settings.height}",
        f"width={settings.width}",
        f"generator=torch.Generator().manual_seed({settings.seed})",
    ]


def _steering(person: PersonSettings, names: set[str]) -> list[str]:
    arguments = []
    if person.uses_pose_photo:
        arguments.append('pose_image="pose.jpg"')
    if person.pose is not None:
        names.add("HeadPose")
        arguments.append("pose=HeadPose(yaw={!r}, pitch={!r}, roll={!r})".format(*person.pose))
    if person.expression is not None:
        arguments.append(f"expression={person.expression}")
    if person.face_box is not None:
        arguments.append(f"face_box={person.face_box!r}")
    return arguments


def _variable(number: int, count: int) -> str:
    return "person" if count == 1 else f"person_{number + 1}"


def _quoted(value: Any) -> str:
    return repr(str(value))
