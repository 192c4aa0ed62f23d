"""`facesnap demo`: pictures of the nano model, on one sheet."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer


if TYPE_CHECKING:
    import numpy as np

    from ..nano.model import NanoPerson
    from ..pipelines.facesnap import FaceSnapPipeline


def demo(
    face: Annotated[
        str | None,
        typer.Option(
            help="Photo of a face, a file or an http(s) URL: shows its avatar, on a sheet of its own: a rendered person of"
            " about the same skin, hair color and features, without age, with one of eight hair styles. Needs dlib."
        ),
    ] = None,
    people: Annotated[
        int | None,
        typer.Option(help="How many of the people who come with the model. Default: all; with --face, none."),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")] = Path("outputs/demo"),
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    steps: Annotated[int, typer.Option(help="Denoising steps with FaceSnap.")] = 4,
    device: Annotated[str, typer.Option(help="cpu, cuda, mps, ...")] = "cpu",
    model: Annotated[
        Path | None, typer.Option(help="Folder of another nano model than the one in this package.")
    ] = None,
) -> None:
    """Show what FaceSnap does, with the small model of synthetic people in this package: no download, no GPU."""
    from ..errors import InputError
    from ..faces.photo import load_photo
    from ..preflight import check_device, make_output_folder, quiet_libraries

    start = time.monotonic()
    photo = None if face is None else load_photo(face, "--face")
    quiet_libraries()
    from ..nano.demo import run_demo
    from ..nano.model import load_nano_pipeline, nano_people

    everybody = nano_people(model)
    count = (len(everybody) if face is None else 0) if people is None else people
    least = 1 if face is None else 0
    if not least <= count <= len(everybody):
        raise InputError(f"--people is {count}; choose {least} to {len(everybody)}, who come with the model")
    if steps < 1:
        raise InputError(f"--steps is {steps}; choose at least 1")
    make_output_folder(output)
    check_device(device)

    pipe = load_nano_pipeline(model)
    avatars = [] if photo is None else [_avatar(pipe, photo, model)]
    pipe.to(device).set_progress_bar_config(disable=True)
    sheet_name = "sheet.png" if face is None else "photo-sheet.png"
    sheet = run_demo(pipe, [*avatars, *everybody[:count]], output, seed, steps, sheet_name)
    typer.echo(f"wrote {sheet} and single pictures beside it, in {time.monotonic() - start:.0f} s")


def _avatar(pipe: "FaceSnapPipeline", photo: "np.ndarray", model: Path | None) -> "NanoPerson":
    """The person in a photo, with the head cut out as their picture."""
    import PIL.Image

    from ..faces.alignment import align_for_clip
    from ..faces.analyzers import default_analyzer
    from ..faces.detection import find_face
    from ..nano.demo import SIZE
    from ..nano.model import NanoPerson
    from ..nano.photos import as_rendered

    config = pipe.facesnap_config
    assert config is not None  # load_nano_pipeline has loaded an adapter
    detected = find_face(photo, default_analyzer(config.face_encoder_id, config.normalized_embeds), name="--face")
    picture = PIL.Image.fromarray(align_for_clip(detected.image, detected.landmarks, SIZE))
    identity = pipe.encode_face(detected.image, embedding=detected.embedding, landmarks=detected.landmarks)
    return NanoPerson("photo", picture, as_rendered(identity, model))
