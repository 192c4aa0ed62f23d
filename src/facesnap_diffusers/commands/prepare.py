from typing import Annotated

import typer


def prepare(
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="Folder, list (.txt, .csv, .jsonl), shards (.tar) or hf:owner/name.")
    ],
    output: Annotated[str | None, typer.Argument(help="Folder of the training shards.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="INPUT is a prepared folder: show what was kept.")] = False,
    face_encoder: Annotated[str, typer.Option(help="Face encoder of the embeddings.")] = "insightface/w600k_r50",
    crop: Annotated[str, typer.Option(help="Crop for the identity loss's recogniser: arcface or dlib.")] = "arcface",
    crop_size: Annotated[int | None, typer.Option(help="Its side in pixels.")] = None,
    head_size: Annotated[int, typer.Option(help="Side of the image encoder's crop, in pixels.")] = 336,
    max_side: Annotated[int, typer.Option(help="Photos are scaled down to it.")] = 1024,
    image_format: Annotated[str, typer.Option(help="Of the photos in the shards: jpg or png.")] = "jpg",
    min_face: Annotated[float, typer.Option(help="Least width of a face, in pixels.")] = 64,
    min_sharpness: Annotated[float, typer.Option(help="Least sharpness; photos in focus have 3 and more.")] = 2.4,
    max_yaw: Annotated[float, typer.Option(help="Most that a head is turned, in degrees.")] = 60,
    max_pitch: Annotated[float, typer.Option(help="Most that a head is lifted or lowered, in degrees.")] = 45,
    duplicate_bits: Annotated[int, typer.Option(help="Bits of 64 in which duplicates may differ; -1 keeps all.")] = 3,
    image_column: Annotated[str, typer.Option(help="Column of the photo, in lists and data sets.")] = "image",
    identity_column: Annotated[str, typer.Option(help="Column of the person.")] = "identity",
    caption_column: Annotated[str, typer.Option(help="Column of the caption.")] = "caption",
    split: Annotated[str, typer.Option(help="Split of a Hugging Face data set.")] = "train",
    processes: Annotated[int, typer.Option(min=1, help="Worker processes.")] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="Work on a Ray cluster, with so many workers.")] = False,
    shard_megabytes: Annotated[int, typer.Option(min=1, help="Size of a shard.")] = 500,
) -> None:
    """Make training shards of photos. Run again to go on where it was stopped."""
    from ..errors import InputError, MissingDependencyError

    try:
        from ..preparation import run
        from ..preparation.photo import PrepareConfig
        from ..preparation.sources import Columns, count, open_source
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
        face_encoder=face_encoder,
        crop=crop,
        crop_size=crop_size,
        head_size=head_size,
        max_side=max_side,
        image_format=image_format,
        min_face=min_face,
        min_sharpness=min_sharpness,
        max_yaw=max_yaw,
        max_pitch=max_pitch,
        duplicate_bits=duplicate_bits,
    )
    run.prepare(
        items, output, config, processes=processes, ray=ray, total=count(source), shard_bytes=shard_megabytes * 10**6
    )
    _show(output)


def _show(folder: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from ..preparation.run import statistics

    found = statistics(folder)
    table = Table("photos", title=folder)
    table.add_column(justify="right")
    table.add_column("share", justify="right")
    rows = {"kept": found["kept"], **found["reasons"]}
    for reason, number in rows.items():
        table.add_row(reason, f"{number:,}", f"{number / max(1, found['photos']):.1%}")
    table.add_section()
    table.add_row("all", f"{found['photos']:,}", "")
    Console().print(table)
    Console().print(f"{found['people']:,} labelled people in {found['shards']:,} shards; each photo: manifest.jsonl")
