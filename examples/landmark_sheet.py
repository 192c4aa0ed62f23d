"""
A contact sheet of landmarks: what pose and expression do to a person's face.

    python examples/landmark_sheet.py                       # signs and presets, for the astronaut of scikit-image
    python examples/landmark_sheet.py PHOTO_OR_FOLDER ...   # a row for each face that is found

Writes outputs/landmark_sheet.png, or what --output says.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from skimage.data import astronaut

from facesnap_diffusers import (
    DlibFaceAnalyzer,
    Expression,
    Face,
    HeadPose,
    LandmarkPredictor,
    draw_landmarks,
    load_landmark_predictor,
)
from facesnap_diffusers.faces.alignment import align_for_clip
from facesnap_diffusers.faces.expression import PRESETS
from facesnap_diffusers.faces.photo import load_photo


SIZE = 176  # pixels a side of each tile
PIXELS_PER_CM = SIZE / 20
Tile = tuple[str, np.ndarray]  # a label and a picture, (SIZE, SIZE, 3) of uint8


class Person:
    """One face of a photo, in any pose and expression."""

    def __init__(self, face: Face, predictor: LandmarkPredictor):
        self.face, self.predictor = face, predictor
        with torch.inference_mode():
            coefficients = predictor.encode(torch.from_numpy(face.landmarks)[None])
        center = torch.tensor([[SIZE / 2, SIZE / 2, 0.0]])
        self.coefficients = dataclasses.replace(coefficients, scale=torch.tensor([PIXELS_PER_CM]), translation=center)

    def photo(self, label: str = "photo") -> Tile:
        return label, align_for_clip(self.face.image, self.face.landmarks, SIZE)

    def tile(self, label: str, pose: HeadPose | None = None, expression: str | None = None) -> Tile:
        """Pose and expression that are not given are those of the photo."""
        coefficients = self.coefficients
        if pose is not None:
            coefficients = dataclasses.replace(coefficients, rotation=torch.tensor([pose.as_tuple()]))
        if expression is not None:
            strengths = Expression.of(expression).to_vector(self.predictor.config.expression_names)
            coefficients = dataclasses.replace(coefficients, expression=torch.from_numpy(strengths)[None])
        with torch.inference_mode():
            picture = draw_landmarks(self.predictor.decode(coefficients), SIZE, SIZE)[0]
        return label, (255 * picture.permute(1, 2, 0)).round().byte().numpy()


def signs_and_presets(person: Person) -> Iterator[list[Tile]]:
    axes = {"yaw": (-50, -25, 0, 25, 50), "pitch": (-30, -15, 0, 15, 30), "roll": (-40, -20, 0, 20, 40)}
    for axis, angles in axes.items():
        yield [person.tile(f"{axis} {angle}°", HeadPose(**{axis: angle}), "neutral") for angle in angles]
    tiles = [person.photo(), *(person.tile(name, HeadPose(yaw=10), name) for name in PRESETS)]
    for start in range(0, len(tiles), 5):
        yield tiles[start : start + 5]


def poses_and_expressions(person: Person, name: str) -> list[Tile]:
    poses = {"yaw -40°": HeadPose(yaw=-40), "yaw 40°": HeadPose(yaw=40), "pitch 25°": HeadPose(pitch=25)}
    tiles = [person.tile(label, pose) for label, pose in poses.items()]
    expressions = ("neutral", "smile", "surprise", "wink_left")
    tiles += [person.tile(expression, HeadPose(), expression) for expression in expressions]
    return [person.photo(name), person.tile("fitted"), *tiles]


def paste(rows: list[list[Tile]]) -> PIL.Image.Image:
    sheet = PIL.Image.new("RGB", (SIZE * max(map(len, rows)), SIZE * len(rows)))
    pen = PIL.ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (label, picture) in enumerate(row):
            corner = x * SIZE, y * SIZE
            sheet.paste(PIL.Image.fromarray(picture), corner)
            pen.text(
                (corner[0] + 5, corner[1] + 3), label, fill="white", font_size=13, stroke_width=1, stroke_fill="black"
            )
    return sheet


def main(photos: list[Path], output: Path) -> None:
    predictor, analyzer = load_landmark_predictor(), DlibFaceAnalyzer()
    if photos:
        files = [
            file for photo in photos for file in (sorted(photo.glob("*.[jp][pn]g")) if photo.is_dir() else [photo])
        ]
        rows = []
        for file in files:
            faces = analyzer.analyze(load_photo(file))
            rows += [poses_and_expressions(Person(face, predictor), file.stem) for face in faces]
            if not faces:
                print(f"no face found in {file}")
    else:
        rows = list(signs_and_presets(Person(analyzer.analyze(astronaut())[0], predictor)))
    if rows:
        output.parent.mkdir(parents=True, exist_ok=True)
        paste(rows).save(output, optimize=True)
        print(f"wrote {output}: {len(rows)} rows")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="*", type=Path, help="photos, or folders of them")
    parser.add_argument("--output", "-o", type=Path, default=Path("outputs/landmark_sheet.png"))
    arguments = parser.parse_args()
    main(arguments.photos, arguments.output)
