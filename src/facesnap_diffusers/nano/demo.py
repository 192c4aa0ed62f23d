"""The pictures of `facesnap demo`: each person in four scenes, from five sides, with four expressions, and without FaceSnap."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import PIL.Image
import torch

from ..faces.drawing import draw_landmarks
from ..faces.pose import HeadPose
from ..files import atomic_file
from ..pipelines.facesnap import FaceSnapPipeline
from .model import NanoPerson
from .portrait_box import portrait_box
from .sheet import Column, Group, draw_sheet


SIZE = 128
STEPS = 4  # the adapter was taught to draw in so few, without guidance
BASE_STEPS, BASE_GUIDANCE_SCALE = 20, 2.0  # with more guidance, zero terminal SNR overexposes


@dataclass(frozen=True)
class Shot:
    """
    One picture of the demo.

    Attributes:
        name (`str`): Of its file.
        label (`str`): Over its column.
        scene (`str`): The prompt, but for its opening, which is always the same.
        pose ([`HeadPose`]), expression (`str`): Where the head looks, and the preset of its face.
        noise (`int`): Shots with the same number start from the same noise.
    """

    name: str
    label: str
    scene: str
    pose: HeadPose
    expression: str
    noise: int

    @property
    def prompt(self) -> str:
        return f"a photo of a person, {self.scene}"


def _prompt(
    number: int, feeling: str, direction: str, shirt: str, background: str, pose: HeadPose, preset: str
) -> Shot:
    scene = f"{feeling}, {direction}, {shirt} shirt, {background} background"
    label = f"{feeling},\n{direction},\n{shirt} shirt,\n{background}\nbackground"
    return Shot(f"prompt-{number}", label, scene, pose, preset, noise=number)


def _turned(yaw: int) -> Shot:
    direction = "facing forward" if abs(yaw) < 14 else "looking right" if yaw > 0 else "looking left"
    scene = f"neutral, {direction}, gray shirt, white background"
    return Shot(f"yaw{yaw:+d}", f"{yaw:+d}°" if yaw else "0°", scene, HeadPose(yaw=yaw), "neutral", noise=0)


def _feeling(word: str, preset: str) -> Shot:
    scene = f"{word}, facing forward, blue shirt, pink background"
    return Shot(preset, word, scene, HeadPose(), preset, noise=0)


PROMPTS = (
    _prompt(1, "smiling", "facing forward", "white", "blue", HeadPose(yaw=-5, pitch=2), "smile"),
    _prompt(2, "neutral", "looking right", "red", "yellow", HeadPose(yaw=24, pitch=-2, roll=3), "neutral"),
    _prompt(3, "laughing", "looking left", "black", "green", HeadPose(yaw=-18, pitch=3, roll=-4), "laugh"),
    _prompt(4, "surprised", "facing forward", "purple", "gray", HeadPose(yaw=8, pitch=4), "surprise"),
)
TURNS = tuple(_turned(yaw) for yaw in (-35, 0, 35))
EXPRESSIONS = (
    _feeling("laughing", "laugh"),
    _feeling("surprised", "surprise"),
    _feeling("sad", "sad"),
)
SHOTS = (*PROMPTS, *TURNS, *EXPRESSIONS)
GROUPS = (
    Group("reference", ("",)),
    Group("four prompts, above the landmarks that steer", tuple(shot.label for shot in PROMPTS)),
    Group("yaw", tuple(shot.label for shot in TURNS)),
    Group("expression", tuple(shot.label for shot in EXPRESSIONS)),
    Group("without FaceSnap", ("same\nprompts,", "same\nnoise")),
)


@torch.no_grad()
def run_demo(
    pipe: FaceSnapPipeline,
    people: Iterable[NanoPerson],
    output: Path,
    seed: int = 0,
    num_inference_steps: int = STEPS,
    sheet_name: str = "sheet.png",
) -> Path:
    r"""
    Makes all pictures of some people, and a sheet of them.

    Args:
        pipe ([`FaceSnapPipeline`]): The nano model.
        people (`Iterable[NanoPerson]`): The people on it.
        output (`Path`): The folder to write: the sheet, and a folder of single pictures for each person.
        seed (`int`): Of the noise.
        num_inference_steps (`int`): Denoising steps with FaceSnap; without it, there are 20.
        sheet_name (`str`): The file of the sheet in that folder.

    Returns:
        `Path`: The sheet.
    """
    rows = []
    for number, person in enumerate(people):
        generated, landmarks = _portraits(pipe, person, seed + 100 * number, num_inference_steps)
        base = _sample(pipe, PROMPTS, seed + 100 * number, BASE_STEPS, BASE_GUIDANCE_SCALE)
        _save(output / person.name, person, generated, landmarks, base)
        rows.append(_row(person, generated, landmarks, base))
    sheet = output / sheet_name
    with atomic_file(sheet) as temporary:
        draw_sheet(GROUPS, rows).save(temporary)
    return sheet


def _portraits(
    pipe: FaceSnapPipeline, person: NanoPerson, seed: int, steps: int
) -> tuple[list[PIL.Image.Image], list[PIL.Image.Image]]:
    """A picture for each shot, and the landmark images that they followed."""
    points = pipe.predict_landmarks(
        person.identity,
        height=SIZE,
        width=SIZE,
        pose=[shot.pose for shot in SHOTS],
        expression=[shot.expression for shot in SHOTS],
        face_box=[portrait_box(shot.pose) for shot in SHOTS],
    )
    drawn = (draw_landmarks(points.cpu(), SIZE, SIZE).permute(0, 2, 3, 1) * 255).round().byte().numpy()
    images = _sample(pipe, SHOTS, seed, steps, guidance_scale=1.0, identity=person.identity, landmarks=points)
    return images, [PIL.Image.fromarray(picture) for picture in drawn]


def _sample(
    pipe: FaceSnapPipeline, shots: Sequence[Shot], seed: int, steps: int, guidance_scale: float, **face: Any
) -> list[PIL.Image.Image]:
    return pipe(
        [shot.prompt for shot in shots],
        height=SIZE,
        width=SIZE,
        num_inference_steps=steps,
        guidance_scale=guidance_scale,
        generator=[torch.Generator().manual_seed(seed + shot.noise) for shot in shots],
        **face,
    ).images


def _save(
    folder: Path,
    person: NanoPerson,
    generated: Sequence[PIL.Image.Image],
    landmarks: Sequence[PIL.Image.Image],
    base: Sequence[PIL.Image.Image],
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    person.picture.save(folder / "reference.png")
    for shot, image, drawn in zip(SHOTS, generated, landmarks, strict=True):
        image.save(folder / f"{shot.name}.png")
        drawn.save(folder / f"{shot.name}-landmarks.png")
    for shot, image in zip(PROMPTS, base, strict=True):
        image.save(folder / f"{shot.name}-base.png")


def _row(
    person: NanoPerson,
    generated: Sequence[PIL.Image.Image],
    landmarks: Sequence[PIL.Image.Image],
    base: Sequence[PIL.Image.Image],
) -> list[list[Column]]:
    """A person's pictures, group by group."""
    columns: list[Column] = list(zip(generated, landmarks, strict=True))
    end = len(PROMPTS) + len(TURNS)
    steered = [columns[: len(PROMPTS)], columns[len(PROMPTS) : end], columns[end:]]
    return [[(person.picture, person.name)], *steered, list(zip(base[:2], base[2:], strict=True))]
