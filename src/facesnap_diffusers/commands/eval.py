from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any

import typer


def evaluate(
    config: Annotated[Path | None, typer.Argument(help="YAML file; the options below replace what it says.")] = None,
    protocol: Annotated[str | None, typer.Option(help="unsplash50, multi_id_bench or nano.")] = None,
    data: Annotated[str | None, typer.Option(help="Folder with the protocol's data.")] = None,
    output: Annotated[str | None, typer.Option(help="Folder for images and results; run again to go on.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="KIND or KIND:SETTING=VALUE,... of what makes the images: text, facesnap, ip_adapter_faceid,"
            " ip_adapter_faceid_plus, images, reference or truth. Give it once for each."
        ),
    ] = None,
    base: Annotated[str | None, typer.Option(help="Folder or Hub repo of the base model.")] = None,
    face_encoder: Annotated[
        list[str] | None, typer.Option(help="Recogniser that judges. The first one given fills the table.")
    ] = None,
    clip_model: Annotated[str | None, typer.Option(help="CLIP model for CLIP metrics, or none.")] = None,
    diversity: Annotated[bool | None, typer.Option(help="LPIPS between images of one person and prompt.")] = None,
    real: Annotated[str | None, typer.Option(help="Folder of real images, for FID and KID.")] = None,
    real_features: Annotated[str | None, typer.Option(help="What FID and KID compare: inception or clip.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(help="Weight of classifier-free guidance.")] = None,
    size: Annotated[int | None, typer.Option(help="Height and width of the images.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, float16 or bfloat16.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of the first image.")] = None,
    limit: Annotated[int | None, typer.Option(help="At most so many cases, spread evenly.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images generated at once.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, mps, ...")] = None,
    sheet_rows: Annotated[int | None, typer.Option(help="Rows of the contact sheet.")] = None,
) -> None:
    """Evaluate FaceSnap and its rivals on the same prompts and seeds: a table, a JSON file and a contact sheet."""
    from rich.console import Console

    from ..evaluation.config import EvalConfig, read_yaml
    from ..evaluation.evaluate import evaluate as run

    values = read_yaml(config) if config is not None else {}
    options = {
        "protocol": protocol,
        "data": data,
        "output": output,
        "methods": [_method(text) for text in method] if method else None,
        "face_encoders": face_encoder or None,
        "clip_model": clip_model,
        "diversity": diversity,
        "real": real,
        "real_features": real_features,
        "seed": seed,
        "limit": limit,
        "batch_size": batch_size,
        "device": device,
        "sheet_rows": sheet_rows,
    }
    sampling = {
        "base": base,
        "num_inference_steps": steps,
        "guidance_scale": guidance_scale,
        "height": size,
        "width": size,
        "dtype": dtype,
    }
    values |= {name: value for name, value in options.items() if value is not None}
    given = {name: value for name, value in sampling.items() if value is not None}
    in_file = values.get("sampling") or {}
    if isinstance(in_file, dict):
        values["sampling"] = {**in_file, **given}

    settings = EvalConfig.from_dict(values, str(config) if config else "command line")
    run(settings, progress=_progress)
    # plain text: rich would wrap a wide table, and take [brackets] for markup
    print(Path(settings.output, "results.md").read_text())
    Console(stderr=True).print(f"all of it is in {settings.output}", markup=False)


def _method(text: str) -> dict[str, Any]:
    """`facesnap:adapter=folder,landmark_scale=0` as a dictionary."""
    from ..errors import InputError

    kind, _, settings = text.partition(":")
    values: dict[str, Any] = {"kind": kind}
    for setting in filter(None, settings.split(",")):
        name, equals, value = setting.partition("=")
        if not equals:
            raise InputError(f"--method {text!r}: {setting!r} has no value; write KIND:SETTING=VALUE,SETTING=VALUE")
        values[name] = value
    return values


def _progress(items: Iterable[Any], description: str, total: int) -> Iterator[Any]:
    """A bar with rate and remaining time, on stderr."""
    from tqdm.auto import tqdm

    yield from tqdm(items, description, total, dynamic_ncols=True, smoothing=0.1)
