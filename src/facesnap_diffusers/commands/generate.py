"""`facesnap generate`: portraits of the person in a photo, one or thousands."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    from ..portraits import ModelSettings, PortraitMaker, PortraitRequest


class Dtype(StrEnum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Offload(StrEnum):
    none = "none"
    model = "model"
    sequential = "sequential"


def generate(
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PHOTO...] [PROMPT]",
            help="Photos of one person (files or URLs), then the prompt. With --table only the table's rows count, with"
            " --from only photos that were moved.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Base model: Hub repo, folder or single file of SD or SDXL. Default: the nano model."),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Adapter: Hub repo, folder or file. Default: the base model's public one.")
    ] = None,
    weight_name: Annotated[str | None, typer.Option(help="File of another kind of adapter in that repo.")] = None,
    landmarks_from: Annotated[
        str | None, typer.Option(help="Take FFRNet, which brings pose and proportions, from this adapter instead.")
    ] = None,
    identity: Annotated[str | None, typer.Option(help="Saved FaceIdentity, in place of photos.")] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt.")] = None,
    pose_image: Annotated[str | None, typer.Option(help="Photo whose pose, expression and framing to take.")] = None,
    yaw: Annotated[float | None, typer.Option(help="Degrees; the face turns to image right.")] = None,
    pitch: Annotated[float | None, typer.Option(help="Degrees; > 0: the nose goes up.")] = None,
    roll: Annotated[float | None, typer.Option(help="Degrees; the head tilts.")] = None,
    expression: Annotated[
        str | None, typer.Option(help="smile, laugh, surprise, ... or ARKit weights as JSON.")
    ] = None,
    face_box: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(help="Where the face goes: left, top, right, bottom as shares of the image."),
    ] = None,
    face_index: Annotated[int | None, typer.Option(help="Which face of the photos, 0 is the largest.")] = None,
    identity_scale: Annotated[float | None, typer.Option(help="Default: what the adapter recommends.")] = None,
    landmark_scale: Annotated[float | None, typer.Option(help="Default: what the adapter recommends.")] = None,
    number: Annotated[int, typer.Option(min=1, help="How many images, with seeds that count up.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. Default: 30, of the nano model 4.")] = None,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    width: Annotated[int | None, typer.Option(help="Pixels. Default: the base model's.")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels. Default: the base model's.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Default: float16 on a GPU, float32 on a CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps, ... Default: a GPU if there is one.")] = None,
    offload: Annotated[Offload, typer.Option(help="Which weights leave the device between uses.")] = Offload.none,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("outputs/generate"),
    source: Annotated[
        Path | None, typer.Option("--from", help="An image of this command: make it again, with all its settings.")
    ] = None,
    table: Annotated[
        Path | None, typer.Option(help="CSV or JSONL: photo or identity, prompt, steering and seed of each image.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="Make the table on a Ray cluster, a GPU a worker.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Workers of the Ray cluster.")] = 1,
) -> None:
    """Make portraits of the person in a photo. Without --base, with the small model in this package: no download."""
    from ..errors import InputError
    from ..portraits import ModelSettings, PortraitMaker, PortraitRequest, from_record, numbered, read_record
    from ..preflight import make_output_folder

    if source is not None and table is not None:
        raise InputError("--from and --table are both given; give one of the two")
    make_output_folder(output)
    _quiet_libraries()
    if source is not None:
        record = read_record(source)
        settings, request, files = from_record(record, inputs)
        _note_versions(record)
        _write(PortraitMaker(settings, progress=True), [request], output, files, name=source.stem)
        return
    device = device or _best_device()
    settings = ModelSettings(
        base=base,
        adapter=adapter,
        weight_name=weight_name,
        landmarks_from=landmarks_from,
        identity_scale=identity_scale,
        landmark_scale=landmark_scale,
        dtype=dtype.value if dtype is not None else "float32" if device == "cpu" else "float16",
        device=device,
        offload=offload.value,
    )
    values: dict[str, Any] = {
        "negative_prompt": negative,
        "pose_image": pose_image,
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
        "expression": _expression(expression),
        "face_box": None if face_box is None else list(face_box),
        "face_index": face_index,
        "seed": seed,
        "steps": steps,
        "guidance_scale": guidance,
        "width": width,
        "height": height,
        "identity": identity,
    }
    if table is not None:
        if inputs:
            raise InputError(f"--table has the photos and prompts, so {inputs[0]!r} has no meaning; leave it out")
        _make_table(table, values, output, settings, ray, workers)
        return
    if not inputs or (len(inputs) < 2 and identity is None):
        raise InputError('give a photo and a prompt: facesnap generate photo.jpg "portrait as an astronaut"')
    *photos, prompt = inputs
    for photo in photos:
        if "://" not in photo and not Path(photo).is_file():
            raise InputError(f"there is no photo {photo}; the prompt comes last, in quotes")
    request = PortraitRequest(prompt=prompt, photos=photos, **values)
    _write(PortraitMaker(settings, progress=True), numbered(request, number), output)


def _write(
    maker: PortraitMaker,
    requests: list[PortraitRequest],
    output: Path,
    files: dict[str, str] | None = None,
    name: str | None = None,
) -> None:
    from ..files import atomic_file

    for request in requests:
        stem = Path(request.photos[0] if request.photos else request.identity or "").stem
        path = output / f"{name or f'{stem}-{request.seed}'}.png"
        png = maker(request, files)
        with atomic_file(path) as temporary:
            temporary.write_bytes(png)
        typer.echo(path)


def _make_table(
    table: Path, defaults: dict[str, Any], output: Path, settings: ModelSettings, ray: bool, workers: int
) -> None:
    from rich.console import Console
    from rich.progress import track

    from ..portraits import PortraitMaker, make_table, read_table

    rows = read_table(table, defaults)
    made = make_table(rows, output, PortraitMaker(settings), ray=ray, workers=workers)
    console = Console(stderr=True)
    failed = sum(error is not None for _, error in track(made, "images", total=len(rows), console=console))
    typer.echo(f"{len(rows) - failed} images in {output}")
    if failed:
        typer.echo(f"{failed} rows failed: see {output / 'failures.jsonl'}; run again to try them again", err=True)
        raise typer.Exit(1)


def _expression(text: str | None) -> Any:
    import json

    from ..errors import InputError

    if text is None or not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise InputError(
            f'expression {text!r} is not JSON; write {{"mouthSmile_L": 0.8}} or a preset\'s name'
        ) from None


def _quiet_libraries() -> None:
    """Leaves out advice on packages; progress bars of downloads stay."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()


def _best_device() -> str:
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _note_versions(record: dict[str, Any]) -> None:
    from importlib.metadata import version

    changed = [
        f"{name} {old} (now {version(name)})" for name, old in record["versions"].items() if version(name) != old
    ]
    if changed:
        typer.echo(f"made with {', '.join(changed)}: the image may differ", err=True)
