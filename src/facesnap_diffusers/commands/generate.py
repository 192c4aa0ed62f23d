"""`facesnap generate`: portraits of the person in a photo, one or thousands."""

from __future__ import annotations

import inspect
import os.path
import re
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    from ..portraits import ModelSettings, PortraitMaker, PortraitRequest, Row


class Dtype(StrEnum):
    float32 = "float32"
    float16 = "float16"
    bfloat16 = "bfloat16"


class Schedule(StrEnum):
    exact = "exact"
    fast = "fast"


class Offload(StrEnum):
    none = "none"
    model = "model"
    sequential = "sequential"


def generate(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PHOTO... PROMPT",
            help="Photos of one person (files or URLs), then the prompt. With --identity the prompt alone, with --table"
            " nothing, with --from the image's photos if they were moved.",
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(help="Base model: Hub repo, folder or single file of SD or SDXL. Default: the nano model."),
    ] = None,
    adapter: Annotated[
        str | None, typer.Option(help="Adapter: Hub repo, folder or file. Default: see facesnap info --public.")
    ] = None,
    weight_name: Annotated[str | None, typer.Option(help="File of another kind of adapter in that repo.")] = None,
    landmarks_from: Annotated[
        str | None, typer.Option(help="Take FFRNet, which brings pose and proportions, from this adapter instead.")
    ] = None,
    identity: Annotated[str | None, typer.Option(help="Saved FaceIdentity, in place of photos.")] = None,
    negative: Annotated[str | None, typer.Option(help="Negative prompt.")] = None,
    pose_image: Annotated[
        str | None,
        typer.Option(help="Photo whose pose, expression and framing to take. With --from: where it is now."),
    ] = None,
    yaw: Annotated[float | None, typer.Option(help="Degrees; > 0 turns the nose to the right of the picture.")] = None,
    pitch: Annotated[float | None, typer.Option(help="Degrees; > 0 lifts the nose.")] = None,
    roll: Annotated[float | None, typer.Option(help="Degrees; > 0 tilts the head clockwise.")] = None,
    expression: Annotated[
        str | None,
        typer.Option(help="A preset (smile, laugh, surprise, ...), or strengths: jawOpen=0.4,mouthSmileLeft=0.8"),
    ] = None,
    face_box: Annotated[
        tuple[float, float, float, float] | None,
        typer.Option(
            metavar="LEFT TOP RIGHT BOTTOM", help="Where the face goes, in shares of the image: 0.3 0.1 0.7 0.6"
        ),
    ] = None,
    face_index: Annotated[int | None, typer.Option(help="Which face of the photos, 0 is the largest.")] = None,
    identity_scale: Annotated[
        float | None, typer.Option(help="Scale of the identity attention. Default: what the adapter recommends.")
    ] = None,
    landmark_scale: Annotated[
        float | None, typer.Option(help="Scale of FFRNet. Default: what the adapter recommends.")
    ] = None,
    number: Annotated[int, typer.Option(min=1, help="How many images, with seeds that count up.")] = 1,
    steps: Annotated[int | None, typer.Option(help="Denoising steps. Default: 30, of the nano model 4.")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale. Default: the pipeline's, of the nano model 1.")
    ] = None,
    schedule: Annotated[
        Schedule | None, typer.Option(help="fast: FFRNet not at every step, in more than eight steps. Default: exact.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    width: Annotated[int | None, typer.Option(help="Of the image, in pixels. Default: the base model's.")] = None,
    height: Annotated[int | None, typer.Option(help="Of the image, in pixels. Default: the base model's.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Default: float16 on a GPU, float32 on a CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps, ... Default: a GPU if there is one.")] = None,
    offload: Annotated[Offload, typer.Option(help="Which weights leave the device between uses.")] = Offload.none,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("outputs/generate"),
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace images of the same name. Default: number the new ones.")
    ] = False,
    source: Annotated[
        Path | None, typer.Option("--from", help="An image of this command: make it again, with all its settings.")
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(
            help="CSV or JSONL with a row an image: photo or identity, prompt, and what else is its own, e.g. yaw and seed."
        ),
    ] = None,
    ray: Annotated[
        bool, typer.Option("--ray", help="Make the table on a Ray cluster, with a GPU for each worker.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Workers of the Ray cluster.")] = 1,
) -> None:
    """Make portraits of the person in a photo. Without --base, with the small model in this package: no download."""
    from ..errors import InputError
    from ..portraits import (
        ModelSettings,
        PortraitMaker,
        PortraitRequest,
        from_record,
        numbered,
        read_record,
        read_table,
    )
    from ..preflight import best_device, best_dtype, make_output_folder, quiet_libraries

    if source is not None and table is not None:
        raise InputError("--from and --table are both given; give one of the two")
    given = _given(context)
    if source is not None:
        without_effect = given - {"inputs", "source", "pose_image", "output", "overwrite"}
        reason = "--from makes the same image again"
    elif table is not None:
        without_effect, reason = given & {"number"}, "--table makes an image a row"
    else:
        without_effect, reason = given & {"ray", "workers"}, "without --table there is no Ray cluster"
    if without_effect:
        raise InputError(f"--{min(without_effect).replace('_', '-')} has no effect: {reason}; leave it out")
    if weight_name is not None and base is None and adapter is None and landmarks_from is None:
        raise InputError(
            "--weight-name has no effect: the nano model has its own adapter; name another with --adapter"
        )
    photos, prompt = ([], "") if source or table else _photos_and_prompt(inputs or [], identity)
    make_output_folder(output)
    if source is not None:
        record = read_record(source)
        settings, request, files = from_record(record, inputs, pose_image)
        _note_versions(record)
        quiet_libraries()
        _write(PortraitMaker(settings, progress=True), [request], output, overwrite, files, name=source.stem)
        return
    values: dict[str, Any] = {
        "negative_prompt": negative,
        "pose_image": pose_image,
        "yaw": yaw,
        "pitch": pitch,
        "roll": roll,
        "expression": expression,
        "face_box": None if face_box is None else list(face_box),
        "face_index": face_index,
        "seed": seed,
        "steps": steps,
        "guidance_scale": guidance,
        "schedule": None if schedule is None else str(schedule),
        "width": width,
        "height": height,
        "identity": identity,
    }
    if table is None:
        with _named_as_options():
            request = PortraitRequest(prompt=prompt, photos=photos, **values)
    elif inputs:
        raise InputError(f"--table has the photos and prompts, so {inputs[0]!r} has no meaning; leave it out")
    else:
        rows = read_table(table, values)
    if base is None:
        typer.echo(
            "without --base, the small model in this package draws rendered people at 128 pixels, and knows few words",
            err=True,
        )
    device = device or best_device()
    with _named_as_options():
        settings = ModelSettings(
            base=base,
            adapter=adapter,
            weight_name=weight_name,
            landmarks_from=landmarks_from,
            identity_scale=identity_scale,
            landmark_scale=landmark_scale,
            dtype=dtype.value if dtype is not None else best_dtype(device),
            device=device,
            offload=offload.value,
        )
    quiet_libraries()
    if table is not None:
        _make_table(rows, output, settings, overwrite, ray, workers)
        return
    _write(PortraitMaker(settings, progress=True), numbered(request, number), output, overwrite)


def _photos_and_prompt(inputs: list[str], identity: str | None) -> tuple[list[str], str]:
    """The photos, then the prompt; raises [`InputError`] where one of them is something else."""
    import PIL.Image

    from ..errors import InputError

    if not inputs or (len(inputs) < 2 and identity is None):
        raise InputError('give a photo and a prompt: facesnap generate photo.jpg "portrait as an astronaut"')
    *photos, prompt = inputs
    for photo in photos:
        if not photo:
            raise InputError("the name of a photo is empty; name a file or URL")
        if "://" not in photo and not os.path.isfile(photo):
            raise InputError(f"there is no photo {photo}; the prompt comes last, in quotes")
    if Path(prompt).suffix.lower() in PIL.Image.registered_extensions() and os.path.isfile(prompt):
        raise InputError(f"the prompt is missing: {prompt} is a photo; add the prompt after it, in quotes")
    return photos, prompt


#: Options whose names are not those of the argument or setting that they become.
_OPTIONS = {"negative_prompt": "--negative", "guidance_scale": "--guidance"}


@contextmanager
def _named_as_options() -> Iterator[None]:
    """Within this context, errors about an argument name the option that the user typed: `--face-box` for `face_box`."""
    from ..errors import FaceSnapError

    try:
        yield
    except FaceSnapError as error:
        message = re.sub("^(PortraitRequest|ModelSettings): ", "", str(error))
        name = re.match(r"\w*", message)
        argument = "" if name is None else name[0]
        known = argument in inspect.signature(generate).parameters
        option = f"--{argument.replace('_', '-')}" if known else _OPTIONS.get(argument, argument)
        raise type(error)(option + message[len(argument) :]) from error


def _write(
    maker: PortraitMaker,
    requests: list[PortraitRequest],
    output: Path,
    overwrite: bool,
    files: dict[str, str] | None = None,
    name: str | None = None,
) -> None:
    from ..files import atomic_file
    from ..preflight import instead_of, without_landmarks_of_ones_own

    for request in requests:
        stem = Path(request.photos[0] if request.photos else request.identity or "").stem
        with (
            instead_of("use DlibFaceAnalyzer", "pass --adapter h94/IP-Adapter, which takes dlib's faces too"),
            without_landmarks_of_ones_own(),
            _named_as_options(),
        ):
            png = maker(request, files)
        path = _free(output / f"{name or f'{stem}-{request.seed}'}.png", overwrite)
        with atomic_file(path) as temporary:
            temporary.write_bytes(png)
        typer.echo(path)


def _free(path: Path, overwrite: bool) -> Path:
    """`path`, or where that is taken the first of `-2`, `-3` and so on that is not."""
    free, number = path, 2
    while not overwrite and free.exists():
        free = path.with_name(f"{path.stem}-{number}{path.suffix}")
        number += 1
    return free


def _given(context: typer.Context) -> set[str]:
    """The names of the parameters that stand on the command line."""
    return {name for name in context.params if "COMMANDLINE" in str(context.get_parameter_source(name))}


def _make_table(
    rows: list[Row],
    output: Path,
    settings: ModelSettings,
    overwrite: bool,
    ray: bool,
    workers: int,
) -> None:
    from rich.console import Console
    from rich.progress import track

    from ..portraits import PortraitMaker, make_table

    made = make_table(rows, output, PortraitMaker(settings), overwrite=overwrite, ray=ray, workers=workers)
    console = Console(stderr=True)
    errors = [error for _, error in track(made, "images", total=len(rows), console=console) if error is not None]
    failed, first = len(errors), next(iter(errors), None)
    typer.echo(f"{len(rows) - failed} images in {output}")
    if failed:
        rows_failed = "1 row failed" if failed == 1 else f"{failed} rows failed"
        typer.echo(f"{rows_failed}: see {output / 'failures.jsonl'}. The first: {first}", err=True)
        raise typer.Exit(1)


def _note_versions(record: dict[str, Any]) -> None:
    from importlib.metadata import PackageNotFoundError, version

    changed = []
    for name, old in record["versions"].items():
        try:
            now = version(name)
        except (PackageNotFoundError, ValueError):  # ValueError: not the name of a package
            now = "not installed"
        if now != old:
            changed.append(f"{name} {old} (now {now})")
    if changed:
        typer.echo(f"made with {', '.join(changed)}: the image may differ", err=True)
