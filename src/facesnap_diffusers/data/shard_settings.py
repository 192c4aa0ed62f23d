"""What shards give to training, and how `facesnap prepare` makes them: settings, with all of its defaults."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import InputError
from ..settings import strict_dataclass


#: What the image encoder sees: the head with its hair ([`align_for_clip`]), or ArcFace's tight crop ([`align_face`]).
ImageCrop = Literal["head", "arcface"]
#: What the recognizer of the identity loss sees: see [`align_faces`].
RecognitionCrop = Literal["arcface", "dlib"]
#: The usual side of each recognition crop, in pixels.
RECOGNITION_CROP_SIZES: dict[str, int] = {"arcface": 112, "dlib": 150}
CropSize = Annotated[int, Field(ge=8, le=4096)]
MOST_ZOOM = 1.3  # of a training run's crops, by default
CLIP_CROP_SIZE = 336  # the largest that public CLIP encoders take


@strict_dataclass(frozen=True)
class ShardSettings:
    r"""
    What all photos of a folder of shards have in common. Training refuses a folder that does not give what the adapter
    is trained with.

    Attributes:
        face_encoder_id (`str`): The face encoder of the embeddings, as `FaceAnalyzer.encoder` names it.
        normalized_embeds (`bool`): Whether the embeddings have unit length. Otherwise they have the length that the face
            encoder gives them.
        image_crop (`str`): What the crop for the image encoder shows: `"head"` or `"arcface"`.
        clip_crop_size (`int`): Its side, in pixels.
        recognition_crop (`str`, *optional*): The crop for the recognizer of the identity loss: `"arcface"` or `"dlib"`.
            `None`: the photos have none, so that the identity loss can only compare with embeddings.
        recognition_crop_size (`int`, *optional*): Its side, in pixels; 112 for ArcFace, 150 for dlib by default.
        preparation (`dict`): How the photos were made or chosen, for the record; training does not read it.
    """

    face_encoder_id: str
    normalized_embeds: bool = True
    image_crop: ImageCrop = "head"
    clip_crop_size: CropSize = CLIP_CROP_SIZE
    recognition_crop: RecognitionCrop | None = "arcface"
    recognition_crop_size: CropSize | None = None
    preparation: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.recognition_crop is None and self.recognition_crop_size is not None:
            raise InputError("recognition_crop_size is given without recognition_crop; leave it out")
        if self.recognition_crop is not None and self.recognition_crop_size is None:
            object.__setattr__(self, "recognition_crop_size", RECOGNITION_CROP_SIZES[self.recognition_crop])


@strict_dataclass(frozen=True)
class PrepareConfig:
    r"""
    How photos are prepared, and which are left out.

    Attributes:
        face_encoder_id (`str`): Face encoder of the embeddings, as [`default_analyzer`] knows it.
        normalized_embeds (`bool`, *optional*): Whether embeddings are brought to unit length. By default InsightFace's
            are, and dlib's keep their own, as in the pipelines.
        image_crop (`str`), clip_crop_size (`int`): What the image encoder sees, `"head"` or `"arcface"`, and its side in
            pixels.
        recognition_crop (`str`), recognition_crop_size (`int`, *optional*): Crop for the recognizer of the identity loss,
            `"arcface"` or `"dlib"`, and its side in pixels.
        resolution (`int`): Side of the training pictures, in pixels. Photos are scaled down as far as pictures of up to
            1.3 times zoom ([`DataConfig.zoom`]) need no enlarging.
        image_format (`str`): Of the photos in the shards: `"jpg"` or `"png"`.
        min_side (`float`): Least length of a photo's shorter side, in sides of the training picture: from less than 1, the
            picture is an enlarged one.
        min_face (`float`): Least width of a face's landmarks, in pixels of a training picture that shows all of the photo's
            shorter side.
        min_sharpness (`float`): Least [`sharpness`] of the face; photos in focus have 3 and more.
        max_yaw (`float`), max_pitch (`float`): Most that a head may be turned, in degrees.
        max_outside (`float`): Most of the landmarks that may lie outside of the photo, as a share.
        second_face (`float`): A photo in which the second largest face has more than this share of the largest one's
            area shows several people.
        duplicate_bits (`int`): Photos are duplicates where the perceptual hashes of the photos differ in at most so many of
            64 bits, or those of the aligned faces in at most three more and the embeddings are nearly the same; mirrored or
            not. -1 keeps all.
        same_person (`float`, *optional*): Largest distance of two embeddings of one person; see [`same_person_distance`].
            By default the face encoder's, where it is known. 0: labels are believed, and photos without one stay so.
        validation (`float`): Share of the people that are set aside for validation, at most 500.
        caption_model (`str`, *optional*): Folder or Hub repo of the model that captions photos without a caption; see
            [`Captioner`]. By default they stay without.
        caption_prompt (`str`, *optional*): What that model is asked; see [`Captioner`].
        leave_out_face (`bool`): Whether [`without_face`] takes out of captions what the face looks like.
    """

    face_encoder_id: str = "insightface/w600k_r50"
    normalized_embeds: bool | None = None
    image_crop: ImageCrop = "head"
    clip_crop_size: CropSize = CLIP_CROP_SIZE
    recognition_crop: RecognitionCrop = "arcface"
    recognition_crop_size: CropSize | None = None
    resolution: Annotated[int, Field(ge=8)] = 512
    image_format: Literal["jpg", "png"] = "jpg"
    min_side: Annotated[float, Field(ge=0)] = 1.0
    min_face: Annotated[float, Field(ge=0)] = 64.0
    min_sharpness: Annotated[float, Field(ge=0)] = 2.4
    max_yaw: Annotated[float, Field(ge=0)] = 60.0
    max_pitch: Annotated[float, Field(ge=0)] = 45.0
    max_outside: Annotated[float, Field(ge=0, le=1)] = 0.1
    second_face: Annotated[float, Field(ge=0, le=1)] = 0.3
    duplicate_bits: Annotated[int, Field(ge=-1, le=12)] = 3
    same_person: Annotated[float, Field(ge=0)] | None = None
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.02
    caption_model: str | None = None
    caption_prompt: str | None = None
    leave_out_face: bool = False

    @property
    def stored_side(self) -> int:
        """Length to which a photo's shorter side is scaled down, in pixels."""
        return math.ceil(MOST_ZOOM * self.resolution)

    def __post_init__(self) -> None:
        if self.normalized_embeds is None:
            object.__setattr__(self, "normalized_embeds", not self.face_encoder_id.startswith("dlib/"))
        if self.recognition_crop_size is None:
            object.__setattr__(self, "recognition_crop_size", RECOGNITION_CROP_SIZES[self.recognition_crop])
        if self.caption_prompt is not None and self.caption_model is None:
            raise InputError("caption_prompt is given without caption_model; name the model, or leave it out")

    def shard_settings(self) -> ShardSettings:
        """What a folder that is prepared so gives, with how its photos were chosen."""
        values = dataclasses.asdict(self)
        given = {item.name for item in dataclasses.fields(ShardSettings)} & set(values)
        # what is done with the photos afterwards may change from run to run
        later = {"same_person", "validation"}
        # folders that were prepared without a captioning model are continued without one
        later |= {name for name in ("caption_model", "caption_prompt", "leave_out_face") if not values[name]}
        preparation = {name: value for name, value in values.items() if name not in given | later}
        return ShardSettings(**{name: values[name] for name in given}, preparation=preparation)
