"""Whether shards give what an adapter is trained with: checked before a base model is loaded."""

from __future__ import annotations

from ..adapter.config import FaceSnapConfig
from ..data.shard_settings import RECOGNITION_CROP_SIZES, ShardSettings
from ..data.shards import read_records
from ..errors import InputError
from ..faces.analyzers import gives_key_points
from .training_config import RecognizerConfig


def check_shards(
    adapter: FaceSnapConfig,
    settings: ShardSettings,
    folder: str,
    recognizer: RecognizerConfig | None = None,
    shows_reference: bool = False,
    resolution: int | None = None,
    image_size: int | None = None,
) -> None:
    r"""
    Compares what a folder of shards gives with what training needs.

    Args:
        adapter ([`FaceSnapConfig`]): What the adapter is made for.
        settings ([`ShardSettings`]): What the photos of the folder have in common; see [`read_settings`].
        folder (`str`): Its name, for messages.
        recognizer ([`RecognizerConfig`], *optional*): That which embeds the photos' recognition crops; `None` where the
            identity loss compares with the stored embeddings, or is off.
        shows_reference (`bool`): Whether validation images show the recognition crops.
        resolution (`int`, *optional*): Side of the training pictures, in pixels.
        image_size (`int`, *optional*): Side of the pictures that the adapter's image encoder takes, in pixels.

    Raises:
        InputError: The embeddings come from another face encoder or have another length than the adapter's, the crops for
            the image encoder show something else or are smaller than its pictures, the recognition crop is missing or
            another one, or the photos were scaled down for smaller training pictures.
    """
    if adapter.face_embed_dim is not None:
        if settings.face_encoder_id != adapter.face_encoder_id:
            raise InputError(
                f"data: {folder} has embeddings of {settings.face_encoder_id}, the adapter is for {adapter.face_encoder_id};"
                " prepare it with that face encoder"
            )
        if settings.normalized_embeds != adapter.normalized_embeds:
            lengths = {True: "unit length", False: "the face encoder's own length"}
            raise InputError(
                f"data: {folder} has embeddings of {lengths[settings.normalized_embeds]}, the adapter is for embeddings of"
                f" {lengths[adapter.normalized_embeds]}; prepare it with"
                f" {'--normalized-embeds' if adapter.normalized_embeds else '--raw-embeds'}"
            )
    if adapter.image_encoder_id is not None and settings.image_crop != adapter.image_crop:
        raise InputError(
            f"data: {folder} has the crop {settings.image_crop!r} for the image encoder, the adapter is for"
            f" {adapter.image_crop!r}; prepare it with --image-crop {adapter.image_crop}"
        )
    if image_size is not None:
        check_clip_crops(settings, folder, image_size)
    if recognizer is not None:
        size = recognizer.size or RECOGNITION_CROP_SIZES[recognizer.crop]
        if (settings.recognition_crop, settings.recognition_crop_size) != (recognizer.crop, size):
            present = f"{settings.recognition_crop} crops of {settings.recognition_crop_size} pixels"
            raise InputError(
                f"data: {folder} has {present if settings.recognition_crop else 'no recognition crops'}, the identity"
                f" loss's recognizer takes {recognizer.crop} crops of {size} pixels; prepare it with --recognition-crop"
                f" {recognizer.crop} --recognition-crop-size {size}, or set identity_loss.reference to embedding"
            )
    prepared_for = settings.preparation.get("resolution")
    if resolution is not None and isinstance(prepared_for, int) and prepared_for < resolution:
        raise InputError(
            f"data: {folder} was prepared for pictures of {prepared_for} pixels, of which data.resolution {resolution} makes"
            f" enlarged ones; prepare it with --resolution {resolution}, or set data.resolution to {prepared_for}"
        )
    if shows_reference and settings.recognition_crop is None:
        raise InputError(
            f"data: {folder} has no recognition crops, which validation images show; prepare it with them, or set"
            " validation.images to 0"
        )


def check_clip_crops(settings: ShardSettings, folder: str, image_size: int) -> None:
    """Raises [`InputError`] where the crops of a folder are smaller than the `image_size` pixels that the image encoder takes."""
    if settings.clip_crop_size < image_size:
        raise InputError(
            f"data: {folder} has crops of {settings.clip_crop_size} pixels for the image encoder, which takes {image_size};"
            f" prepare it with --clip-crop-size {image_size}"
        )


def check_key_points(adapter: FaceSnapConfig, folder: str) -> None:
    r"""
    Pipelines take the key points that the detector itself found for the `"arcface"` crop and for InstantID's picture, where
    the adapter's face analyzer gives them; then training must have them too.

    Args:
        adapter ([`FaceSnapConfig`]): What the adapter is made for.
        folder (`str`): Of shards.

    Raises:
        InputError: The adapter is made for key points, and photos of the folder have none.
    """
    cropped_by_them = adapter.image_encoder_id is not None and adapter.image_crop == "arcface"
    drawn = "ffrnet" in adapter.parts and adapter.landmark_style == "instantid5"
    if not (cropped_by_them or drawn) or not gives_key_points(adapter.face_encoder_id):
        return
    if not all(record.key_points for record in read_records(folder) if record.kept):
        use = "crop 'arcface'" if cropped_by_them else "landmark style 'instantid5'"
        raise InputError(
            f"data: {folder} has photos without the detector's key points, which the adapter's {use} takes with"
            f" {adapter.face_encoder_id}; prepare it again, or give make_face key_points="
        )
