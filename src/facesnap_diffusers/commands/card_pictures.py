"""The grid of pictures on an adapter's model card: what the adapter makes of some photos."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from ..adapter.config import FaceSnapConfig
from ..adapter.model_card import as_text
from ..adapter.public import NANO_FAMILY
from ..errors import InputError
from ..faces.photo import load_photo
from ..faces.pose import HeadPose
from ..nano.demo import BASE_GUIDANCE_SCALE, BASE_STEPS, EXPRESSIONS, PROMPTS, TURNS
from ..nano.portrait_box import portrait_box
from ..nano.sheet import Column, Group, draw_sheet
from ..pipelines.auto import AutoFaceSnapPipeline
from ..portraits import NANO_STEPS, STEPS


#: For base models of full size; nano understands captions of its own kind.
DEFAULT_PROMPTS = (
    "portrait photo of a person in a sunlit garden, soft light",
    "portrait of a person as an astronaut, detailed",
    "oil painting of a person, visible brush strokes",
)
GUIDANCE_SCALE = 5.0


@dataclass(frozen=True)
class Scene:
    """One column: what is asked for. Scenes of the same `noise` start from the same noise."""

    label: str
    prompt: str
    pose: HeadPose | None = None
    expression: str | None = None
    face_box: tuple[float, float, float, float] | None = None
    noise: int = 0


@torch.no_grad()
def draw_pictures(
    adapter: Path,
    config: FaceSnapConfig,
    photos: Sequence[Path],
    prompts: Sequence[str] = (),
    *,
    steps: int | None = None,
    guidance_scale: float | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> tuple[PIL.Image.Image, str]:
    r"""
    Makes the pictures with the adapter on its base model, at the adapter's own scales.

    Args:
        adapter (`Path`), config ([`FaceSnapConfig`]): The adapter's folder, and its config, which names the base model.
        photos (`Sequence[Path]`): One of each person: a row of the grid.
        prompts (`Sequence[str]`): By default those for the family of the base model.
        steps (`int`, *optional*), guidance_scale (`float`, *optional*): By default 30 and 5.0; for nano 4 and 1.0.
        seed (`int`): Of the noise.
        device (`str`): Where the model runs, on CUDA in float16.

    Returns:
        The grid, and what the card says of it, as Markdown.

    Raises:
        InputError: The base model could not be loaded, or a photo could not be read or shows no face.
    """
    assert config.base_model is not None  # the command has checked it
    is_nano = config.base_family == NANO_FAMILY
    steps = steps or (NANO_STEPS if is_nano else STEPS)
    if guidance_scale is None:
        guidance_scale = 1.0 if is_nano else GUIDANCE_SCALE
    sampling = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
    # the nano adapter was taught few steps without guidance, its base alone needs both
    base_sampling = {"num_inference_steps": BASE_STEPS, "guidance_scale": BASE_GUIDANCE_SCALE} if is_nano else sampling
    pipe: Any = AutoFaceSnapPipeline.from_pretrained(
        config.base_model, dtype=torch.float16 if device.startswith("cuda") else torch.float32
    )
    pipe.load_facesnap_adapter(str(adapter))
    pipe.to(device).set_progress_bar_config(disable=True)
    groups = (
        _nano_scenes() if is_nano and not prompts else _scenes(prompts or DEFAULT_PROMPTS, "ffrnet" in config.parts)
    )
    first, second = groups[0][1][:2] if len(groups[0][1]) > 1 else groups[0][1] * 2

    rows: list[list[list[Column]]] = []
    for number, photo in enumerate(photos):
        reference = PIL.Image.fromarray(load_photo(photo, str(photo)))
        try:
            identity = pipe.encode_face(reference)
        except InputError as error:
            raise type(error)(str(error).replace("face_image", str(photo))) from None
        start = seed + 100 * number
        made = [[_column(pipe, scene, identity, start, sampling) for scene in scenes] for _, scenes in groups]
        plain = [_sample(pipe, scene, start, base_sampling) for scene in (first, second)]
        rows.append([[(reference, "")], *made, [(plain[0], plain[1])]])
    heads = [
        Group("reference", ("",)),
        *(Group(name, tuple(scene.label for scene in scenes)) for name, scenes in groups),
    ]
    heads.append(Group("without", ("the base model,\nsame noise",)))
    size = rows[0][1][0][0].size
    grid = draw_sheet(heads, rows, tile=256 if max(size) >= 256 else 128)
    return grid, _caption(pipe, config, groups[0][1], sampling, size, seed)


def _scenes(prompts: Sequence[str], has_landmarks: bool) -> list[tuple[str, list[Scene]]]:
    """The columns in groups; those that need FFRNet only where there is one."""
    named = [Scene(f"prompt {i}", prompt, noise=i) for i, prompt in enumerate(prompts, start=1)]
    groups = [("prompts", named)]
    if has_landmarks:
        turned = [Scene(f"{yaw:+d}°", prompts[0], HeadPose(yaw=yaw), "neutral", noise=1) for yaw in (-30, 30)]
        faces = [Scene(name, prompts[0], HeadPose(), name, noise=1) for name in ("smile", "surprise")]
        groups += [("yaw", turned), ("expression", faces)]
    return groups


def _nano_scenes() -> list[tuple[str, list[Scene]]]:
    def of(shot: Any, label: str | None = None) -> Scene:
        return Scene(
            label or shot.label, shot.prompt, shot.pose, shot.expression, portrait_box(shot.pose), noise=shot.noise
        )

    return [
        ("prompts", [of(shot, f"prompt {i}") for i, shot in enumerate(PROMPTS, start=1)]),
        ("yaw", [of(TURNS[0]), of(TURNS[-1])]),
        ("expression", [of(shot) for shot in EXPRESSIONS[:3]]),
    ]


def _column(pipe: Any, scene: Scene, identity: Any, seed: int, sampling: dict[str, Any]) -> Column:
    """A picture, and below it the landmarks that steered it; without FFRNet the picture of another noise."""
    if pipe.ffrnet is None:
        first, second = (_sample(pipe, scene, start, sampling, identity=identity) for start in (seed, seed + 50))
        return first, second
    sample_size = pipe.unet.config.sample_size
    height, width = (sample_size, sample_size) if isinstance(sample_size, int) else sample_size
    height, width = height * pipe.vae_scale_factor, width * pipe.vae_scale_factor
    points = pipe.predict_landmarks(
        identity, height=height, width=width, pose=scene.pose, expression=scene.expression, face_box=scene.face_box
    )
    drawn = pipe.face_conditioner("predict_landmarks").landmark_picture(points, height, width)[0].permute(1, 2, 0)
    picture = _sample(pipe, scene, seed, sampling, identity=identity, landmarks=points)
    return picture, PIL.Image.fromarray((drawn.float().cpu() * 255).round().byte().numpy())


def _sample(pipe: Any, scene: Scene, seed: int, sampling: dict[str, Any], **face: Any) -> PIL.Image.Image:
    generator = torch.Generator().manual_seed(seed + scene.noise)
    return pipe(scene.prompt, generator=generator, **sampling, **face).images[0]


def _caption(
    pipe: Any,
    config: FaceSnapConfig,
    scenes: Sequence[Scene],
    sampling: dict[str, Any],
    size: tuple[int, int],
    seed: int,
) -> str:
    below = "the landmarks that steer them" if pipe.ffrnet is not None else "the same from another noise"
    scales = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in pipe.facesnap_scale.items())
    prompts = "\n".join(f"{i}. {as_text(scene.prompt)}" for i, scene in enumerate(scenes, start=1))
    return f"""A row for each reference photo: pictures that this adapter made of it on `{config.base_model}`, and below them {below}.
The last column is the base model alone.

`{type(pipe.scheduler).__name__}`, {sampling["num_inference_steps"]} steps, guidance scale {sampling["guidance_scale"]:g},
{scales}, {size[0]} × {size[1]} px, seed {seed}. Prompts:

{prompts}"""
