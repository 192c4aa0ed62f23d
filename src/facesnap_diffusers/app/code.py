"""The Python code that makes a picture of the app again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

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
) -> str:
    r"""
    Code that makes a picture, in the reader's own Python. Photos are named by placeholders, such as `"photo.jpg"`.

    Args:
        settings ([`PictureSettings`]): What the picture was made from.
        sent (`Sequence[SentPhotos]`): What each person was made from.
        base (`str`, *optional*), adapter (`str`, *optional*): The model; the nano model without a base.
        is_xl (`bool`): Whether the base is of Stable Diffusion XL's kind.
    """
    classname = _CLASSES[settings.mode].format("XL" if is_xl else "")
    names: set[str] = set()
    lines: list[str] = []
    if base is None:
        names.add("load_nano_pipeline")
        lines.append("pipe = load_nano_pipeline()")
        if settings.mode != "text":
            names.add(classname)
            lines.append(f"pipe = {classname}.from_pipe(pipe)")
    else:
        names.add(classname)
        loader = "from_single_file" if base.endswith((".safetensors", ".ckpt")) else "from_pretrained"
        lines.append(f'pipe = {classname}.{loader}("{base}")')
        lines.append(f"pipe.load_facesnap_adapter({_quoted(adapter) if adapter else ''})")
    lines += _identities(sent, names)
    if settings.mode != "text":
        lines.append(f'start = Image.open("start.png").convert("RGB").resize(({settings.width}, {settings.height}))')
    if settings.mode == "inpaint":
        lines.append(f'mask = Image.open("mask.png").convert("L").resize(({settings.width}, {settings.height}))')
    lines += ["image = pipe(", *(f"    {argument}," for argument in _arguments(settings, names)), ").images[0]"]
    lines.append('image.save("picture.png")')

    imports = ["import torch"]
    if settings.mode != "text":
        imports.append("from PIL import Image")
    imports.append(f"from facesnap_diffusers import {', '.join(sorted(names))}")
    return "\n".join([*imports, "", *lines, ""])


def _identities(sent: Sequence[SentPhotos], names: set[str]) -> list[str]:
    lines = []
    for number, photos in enumerate(sent):
        variable, suffix = _variable(number, len(sent)), "" if len(sent) == 1 else f"-{number + 1}"
        if photos.sample is not None:
            names.add("nano_people")
            lines.append(f'{variable} = next(p.identity for p in nano_people() if p.name == "{photos.sample}")')
            continue
        count = len(photos.photos)
        files = [f'"photo{suffix}{"" if count == 1 else chr(ord("a") + i)}.jpg"' for i in range(count)]
        lines.append(f"{variable} = pipe.encode_face([{', '.join(files)}])")
    return lines


def _arguments(settings: PictureSettings, names: set[str]) -> list[str]:
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
        arguments += ["image=start", f"strength={settings.strength:g}"]
    if settings.mode == "inpaint":
        arguments.append("mask_image=mask")
    for name in ("identity_scale", "landmark_scale"):
        if getattr(settings, name) != 1.0:
            arguments.append(f"{name}={getattr(settings, name):g}")
    if settings.schedule != "exact":
        arguments.append(f'facesnap_schedule="{settings.schedule}"')
    return [
        *arguments,
        f"num_inference_steps={settings.steps}",
        f"guidance_scale={settings.guidance_scale:g}",
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
        arguments.append("pose=HeadPose(yaw={:g}, pitch={:g}, roll={:g})".format(*person.pose))
    if person.expression is not None:
        arguments.append(f"expression={person.expression}")
    if person.face_box is not None:
        arguments.append("face_box=({:g}, {:g}, {:g}, {:g})".format(*person.face_box))
    return arguments


def _variable(number: int, count: int) -> str:
    return "person" if count == 1 else f"person_{number + 1}"


def _quoted(value: Any) -> str:
    return repr(str(value))
