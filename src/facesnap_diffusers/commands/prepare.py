"""`facesnap prepare`: from photos to training shards."""

from enum import StrEnum
from typing import Annotated, Any

import typer

from ..data.shard_settings import PrepareConfig


class ImageCrop(StrEnum):
    head = "head"
    arcface = "arcface"


class RecognitionCrop(StrEnum):
    arcface = "arcface"
    dlib = "dlib"


class ImageFormat(StrEnum):
    jpg = "jpg"
    png = "png"


DEFAULT = PrepareConfig()


def prepare(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="Folder, list (.txt, .csv, .jsonl) or shards (.tar), also at s3://, hf://…; or hf:owner/name.",
        ),
    ],
    output: Annotated[str | None, typer.Argument(help="Folder of the training shards.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="INPUT is a prepared folder: show what was kept.")] = False,
    face_encoder_id: Annotated[str, typer.Option(help="Face encoder of the embeddings.")] = DEFAULT.face_encoder_id,
    normalized_embeds: Annotated[
        bool | None,
        typer.Option(
            "--normalized-embeds/--raw-embeds",
            help="Embeddings of unit length, or as the face encoder gives them. Default: unit length; raw for dlib's.",
        ),
    ] = None,
    image_crop: Annotated[
        ImageCrop, typer.Option(help="What the image encoder sees: the head, or the tight crop of ArcFace.")
    ] = ImageCrop(DEFAULT.image_crop),
    clip_crop_size: Annotated[int, typer.Option(help="Side of that crop, in pixels.")] = DEFAULT.clip_crop_size,
    recognition_crop: Annotated[
        RecognitionCrop, typer.Option(help="Crop for the identity loss's recognizer.")
    ] = RecognitionCrop(DEFAULT.recognition_crop),
    recognition_crop_size: Annotated[
        int | None, typer.Option(help="Side of that crop, in pixels. Default: 112 for arcface, 150 for dlib.")
    ] = None,
    resolution: Annotated[
        int, typer.Option(help="Side of the training pictures, in pixels: 512 for SD 1.5, 1024 for SDXL.")
    ] = DEFAULT.resolution,
    image_format: Annotated[ImageFormat, typer.Option(help="Of the photos in the shards.")] = ImageFormat(
        DEFAULT.image_format
    ),
    min_side: Annotated[
        float, typer.Option(help="Least length of a photo's shorter side, in sides of the training picture.")
    ] = DEFAULT.min_side,
    min_face: Annotated[
        float, typer.Option(help="Least width of a face, in pixels of the training picture.")
    ] = DEFAULT.min_face,
    min_sharpness: Annotated[
        float, typer.Option(help="Least sharpness; photos in focus have 3 and more.")
    ] = DEFAULT.min_sharpness,
    max_yaw: Annotated[float, typer.Option(help="Most that a head is turned, in degrees.")] = DEFAULT.max_yaw,
    max_pitch: Annotated[
        float, typer.Option(help="Most that a head is lifted or lowered, in degrees.")
    ] = DEFAULT.max_pitch,
    max_outside: Annotated[
        float, typer.Option(help="Most of the landmarks that may lie outside of the photo, as a share.")
    ] = DEFAULT.max_outside,
    second_face: Annotated[
        float, typer.Option(help="Most area that a second face may have, as a share of the largest one's.")
    ] = DEFAULT.second_face,
    duplicate_bits: Annotated[
        int, typer.Option(help="Bits of 64 in which duplicates may differ; -1 keeps all.")
    ] = DEFAULT.duplicate_bits,
    same_person: Annotated[
        float | None,
        typer.Option(
            help="Largest distance of two embeddings of one person; 0 believes the labels. Default: the face encoder's."
        ),
    ] = None,
    validation: Annotated[
        float, typer.Option(help="Share of the people that are set aside for validation.")
    ] = DEFAULT.validation,
    image_column: Annotated[str, typer.Option(help="Column of the photo, in lists and data sets.")] = "image",
    identity_column: Annotated[
        str | None, typer.Option(help="Column of the person, in lists and data sets; identity, if there is one.")
    ] = None,
    caption_column: Annotated[
        str | None, typer.Option(help="Column of the caption, in lists and data sets; caption, if there is one.")
    ] = None,
    caption_model: Annotated[
        str | None,
        typer.Option(help="Model that captions photos without a caption, e.g. Salesforce/blip-image-captioning-base."),
    ] = None,
    caption_prompt: Annotated[
        str | None, typer.Option(help="What it is asked. Default: a description of all but the face, for chat models.")
    ] = None,
    leave_out_face: Annotated[
        bool, typer.Option("--leave-out-face", help="Take hair, beard, skin, eyes and age out of all captions.")
    ] = False,
    split: Annotated[str, typer.Option(help="Split of a Hugging Face data set.")] = "train",
    processes: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    devices: Annotated[
        str | None, typer.Option(help="GPUs of which the worker processes take turns, e.g. 0,1,2,3.")
    ] = None,
    providers: Annotated[
        str | None, typer.Option(help="ONNX Runtime's execution providers, e.g. CUDAExecutionProvider.")
    ] = None,
    retry: Annotated[
        list[str] | None,
        typer.Option(
            help="Try photos again that were left out for this reason, e.g. failed. May be given several times."
        ),
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Work on a Ray cluster, with --processes workers.")] = False,
    shard_megabytes: Annotated[int, typer.Option(min=1, help="Size of a shard.")] = 500,
) -> None:
    """Make training shards of photos. Run again to continue where it was stopped."""
    from ..errors import InputError, MissingDependencyError
    from ..faces.analyzers import DlibFaceAnalyzer
    from ..preflight import instead_of

    try:
        import webdataset  # noqa: F401  (which the shards are written with)

        from ..data.preparation import prepare as run
        from ..data.sources import Columns, count, open_source
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'facesnap prepare needs {error.name}: pip install "facesnap-diffusers[train]"'
        ) from error
    if stats:
        _show(source if output is None else output)
        return
    if output is None:
        raise InputError("OUTPUT is missing; name the folder of the training shards")
    items = open_source(source, Columns(image_column, identity_column, caption_column), split)
    config = PrepareConfig(
        face_encoder_id=face_encoder_id,
        normalized_embeds=normalized_embeds,
        image_crop=image_crop.value,
        clip_crop_size=clip_crop_size,
        recognition_crop=recognition_crop.value,
        recognition_crop_size=recognition_crop_size,
        resolution=resolution,
        image_format=image_format.value,
        min_side=min_side,
        min_face=min_face,
        min_sharpness=min_sharpness,
        max_yaw=max_yaw,
        max_pitch=max_pitch,
        max_outside=max_outside,
        second_face=second_face,
        duplicate_bits=duplicate_bits,
        same_person=same_person,
        validation=validation,
        caption_model=caption_model,
        caption_prompt=caption_prompt,
        leave_out_face=leave_out_face,
    )
    with instead_of("use DlibFaceAnalyzer", f"pass --face-encoder-id {DlibFaceAnalyzer.encoder}"):
        run(
            items,
            output,
            config,
            processes=processes,
            ray=ray,
            total=count(source),
            shard_bytes=shard_megabytes * 10**6,
            providers=providers.split(",") if providers else None,
            devices=_numbers(devices) if devices else None,
            retry=retry or [],
        )
    if _show(output) == 0:
        raise InputError(f"no photo of {source} was kept; the table above says why")


def _numbers(text: str) -> list[int]:
    from ..errors import InputError

    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise InputError(f"--devices is {text!r}; it must be numbers of GPUs, e.g. 0,1") from None


def _show(folder: str) -> int:
    """Prints a table; returns the number of photos kept."""
    from rich.console import Console
    from rich.table import Table

    from ..data.preparation import statistics

    counts: dict[str, Any] = statistics(folder)
    table = Table("photos", title=folder)
    table.add_column(justify="right")
    table.add_column("share", justify="right")
    rows = {"kept": counts["kept"], **counts["reasons"]}
    for reason, number in rows.items():
        table.add_row(reason, f"{number:,}", f"{number / max(1, counts['photos']):.1%}")
    table.add_section()
    table.add_row("all", f"{counts['photos']:,}", "")
    Console().print(table)
    clustered = f" ({counts['clustered']:,} of them found by their embeddings)" if counts["clustered"] else ""
    Console().print(
        f"{counts['people']:,} people{clustered} in {counts['shards']:,} shards; {counts['validation']:,} photos set aside for"
        " validation; each photo: manifest.jsonl and people.jsonl"
    )
    if counts["not_clustered"]:
        Console().print(
            f"{counts['not_clustered']:,} photos have no label and were too many to compare with one another: each counts as a"
            " person; give labels, or prepare parts of up to 100,000 into folders of their own"
        )
    return int(counts["kept"])
