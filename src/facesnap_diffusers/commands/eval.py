"""`facesnap eval`: methods compared on the same prompts and seeds."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    config: Annotated[Path | None, typer.Argument(help="YAML file; the options below replace its values.")] = None,
    benchmark: Annotated[str | None, typer.Option(help="unsplash50, multi_id_bench or nano.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder with the benchmark's data.")] = None,
    output: Annotated[str | None, typer.Option(help="Folder for images and results; run again to continue.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="KIND or KIND:SETTING=VALUE,... of a method that makes images: text, facesnap, ip_adapter_faceid,"
            " ip_adapter_faceid_plus, images, reference or ground_truth. May be given several times."
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option(help="Folder or Hub repo of the base model; nano: the one in this package.")
    ] = None,
    imports: Annotated[
        list[str] | None,
        typer.Option("--import", help="Module to import first, for bases with components of your own."),
    ] = None,
    face_encoder_id: Annotated[
        list[str] | None,
        typer.Option(
            help="Recognizer that judges likeness; may be given several times. The first one's faces and points count for all"
            " else."
        ),
    ] = None,
    clip_model_id: Annotated[str | None, typer.Option(help="CLIP model for CLIP metrics, or none.")] = None,
    diversity: Annotated[bool | None, typer.Option(help="LPIPS between images of one person and prompt.")] = None,
    real: Annotated[str | None, typer.Option(help="Folder of real images, for FID and KID.")] = None,
    real_features: Annotated[str | None, typer.Option(help="What FID and KID compare: inception or clip.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Weight of classifier-free guidance.")] = None,
    size: Annotated[int | None, typer.Option(help="Height and width of the images, in pixels.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the first image.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many cases, spread evenly.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images generated at once.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ...")] = None,
    sheet_rows: Annotated[int | None, typer.Option(help="Rows of the contact sheet, 0 for none.")] = None,
) -> None:
    """Evaluate FaceSnap and its rivals on the same prompts and seeds: a table, a JSON file and a contact sheet."""
    from rich.console import Console

    from ..errors import InputError
    from ..evaluation.eval_config import EvalConfig
    from ..evaluation.evaluate import evaluate as run
    from ..settings import parse_settings, read_yaml

    values = read_yaml(config) if config is not None else {}
    options = {
        "benchmark": benchmark,
        "data": data,
        "output": output,
        "methods": [_method(text) for text in method or []] or None,
        "face_encoder_ids": face_encoder_id or None,
        "clip_model_id": clip_model_id,
        "diversity": diversity,
        "real": real,
        "real_features": real_features,
        "seed": seed,
        "limit": limit,
        "batch_size": batch_size,
        "device": device,
        "sheet_rows": sheet_rows,
    }
    sampling_options = {
        "base": base,
        "imports": imports or None,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "height": size,
        "width": size,
        "dtype": dtype,
    }
    values |= _given(options)
    sampling = values.get("sampling") or {}
    if isinstance(sampling, dict):  # anything else is an error of the file
        values["sampling"] = sampling | _given(sampling_options)
    for name in ("benchmark", "data", "output", "methods"):
        if name not in values:
            raise InputError(f"{name} is missing; give it in the config or as --{name.removesuffix('s')}")

    settings = parse_settings(EvalConfig, values, f"config {config}" if config else "command line")
    run(settings, progress=_progress)
    # plain text: rich would wrap a wide table, and read [brackets] as markup
    print(Path(settings.output, "results.md").read_text())
    Console(stderr=True).print(f"images and results are in {settings.output}", markup=False)


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _method(text: str) -> dict[str, Any]:
    """`facesnap:adapter=folder,landmark_scale=0` as a dictionary."""
    from ..errors import InputError

    kind, _, settings = text.partition(":")
    values: dict[str, Any] = {"kind": kind}
    for setting in filter(None, settings.split(",")):
        name, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--method {text!r}: {setting!r} has no value; write KIND:SETTING=VALUE,SETTING=VALUE")
        values[name] = _number_or_text(value)
    return values


def _number_or_text(text: str) -> bool | int | float | str:
    """A number or a truth value as YAML reads it, anything else as it is."""
    from ..errors import InputError
    from ..settings import parse_value

    try:
        value = parse_value(text)
    except InputError:
        return text
    return value if isinstance(value, (bool, int, float)) else text


def _progress(items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
    """A bar with rate and remaining time, on stderr."""
    from tqdm.auto import tqdm

    yield from tqdm(items, description, total, dynamic_ncols=True, smoothing=0.1)
