"""
One photo, other poses, other expressions: the landmarks that steer FaceSnap, drawn for the astronaut of scikit-image.

    python examples/demo.py [PHOTO] [--output FOLDER]
"""

import argparse
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import torch
from skimage.data import astronaut

from facesnap_diffusers import DlibFaceAnalyzer, Expression, HeadPose, draw_landmarks, load_landmark_predictor
from facesnap_diffusers.faces.alignment import align_for_clip
from facesnap_diffusers.faces.detection import find_face
from facesnap_diffusers.identity import FaceIdentity
from facesnap_diffusers.pipelines.steering import steer


SIZE = 256
FACE_BOX = torch.tensor([0.22, 0.2, 0.78, 0.8])
YAWS = (-50, -25, 0, 25, 50)
EXPRESSIONS = ("neutral", "smile", "laugh", "surprise", "angry")


def main(photo: str | None, output: Path) -> None:
    face = find_face(astronaut() if photo is None else photo, DlibFaceAnalyzer(), name="photo")
    person = FaceIdentity(
        face_embeds=torch.from_numpy(face.embedding),
        face_encoder=face.encoder,
        landmarks=torch.from_numpy(face.landmarks),
        photo_size=face.image.shape[:2],
    )
    predictor = load_landmark_predictor()

    def tile(pose: HeadPose, expression: str) -> PIL.Image.Image:
        points = steer(predictor, SIZE, SIZE, person, None, pose, Expression.of(expression), FACE_BOX)
        picture = draw_landmarks(points, SIZE, SIZE)[0].permute(1, 2, 0)
        return PIL.Image.fromarray((255 * picture).round().byte().numpy())

    reference = PIL.Image.fromarray(align_for_clip(face.image, face.landmarks, SIZE))
    rows = [
        [("photo", reference), *((f"yaw {yaw}°", tile(HeadPose(yaw=yaw), "neutral")) for yaw in YAWS)],
        [("", None), *((name, tile(HeadPose(yaw=15), name)) for name in EXPRESSIONS)],
    ]
    sheet = PIL.Image.fromarray(np.full((SIZE * len(rows), SIZE * len(rows[0]), 3), 24, dtype=np.uint8))
    pen = PIL.ImageDraw.Draw(sheet)
    for y, row in enumerate(rows):
        for x, (label, picture) in enumerate(row):
            if picture is not None:
                sheet.paste(picture, (x * SIZE, y * SIZE))
            pen.text((x * SIZE + 8, y * SIZE + 6), label, fill="white", font_size=18)
    output.mkdir(parents=True, exist_ok=True)
    sheet.save(output / "landmarks.png")
    print(f"wrote {output / 'landmarks.png'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", nargs="?", help="another photo: a file or an http(s) URL")
    parser.add_argument("--output", type=Path, default=Path("outputs/demo"))
    arguments = parser.parse_args()
    main(arguments.photo, arguments.output)
