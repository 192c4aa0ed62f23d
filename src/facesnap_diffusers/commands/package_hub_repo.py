"""`facesnap package-hub-repo`: an adapter folder as a complete Hub repo."""

from pathlib import Path
from typing import Annotated

import typer


_PIPELINE = '''"""
FaceSnap as a pipeline from the Hub. Needs `pip install facesnap-diffusers`.

    pipe = DiffusionPipeline.from_pretrained(base, custom_pipeline="{repo_id}", trust_remote_code=True)
    pipe.load_facesnap_adapter("{repo_id}")
"""

import facesnap_diffusers


class FaceSnapHubPipeline(facesnap_diffusers.{pipeline}):
    """A [`{pipeline}`]; a class of this file, as diffusers expects."""
'''

_BLOCK = '''"""
FaceSnap's Modular Diffusers blocks for Stable Diffusion XL. Needs `pip install facesnap-diffusers`.

    pipe = ModularPipeline.from_pretrained("{repo_id}", trust_remote_code=True)
"""

from diffusers.modular_pipelines import SequentialPipelineBlocks
from facesnap_diffusers.modular import FaceSnapXLBlocks


class FaceSnapBlocks(FaceSnapXLBlocks, SequentialPipelineBlocks):
    """The blocks of [`FaceSnapXLBlocks`]; a class of this file, as diffusers expects."""
'''

PICTURES = "pictures.jpg"


def package_hub_repo(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder, as save_facesnap_adapter writes it.")],
    repo_id: Annotated[str, typer.Option(help="Name of the repo on the Hub, owner/name.")],
    base_model: Annotated[
        str | None, typer.Option(help="Base model on the Hub that it was trained on; its family is checked.")
    ] = None,
    license: Annotated[str | None, typer.Option(help="License of the weights, e.g. apache-2.0.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Data set on the Hub; may be given several times.")] = None,
    photo: Annotated[
        list[Path] | None,
        typer.Option(
            help="Photo of a person who agreed to be shown: the card gets pictures that the adapter makes of it. May be"
            " given several times, a row each. Loads the base model."
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option(help="For these pictures, instead of the default prompts.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Their denoising steps; 30 by default.")] = None,
    guidance_scale: Annotated[float | None, typer.Option(min=0, help="Their guidance; 5 by default.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of their noise; 0 by default.")] = None,
    device: Annotated[str | None, typer.Option(help="Where they are made: cpu (the default), cuda, mps, ...")] = None,
    results: Annotated[
        Path | None, typer.Option(help="Output folder of facesnap eval: the card gets its table, and a model-index.")
    ] = None,
    method: Annotated[str | None, typer.Option(help="The adapter's row in that table, where it has several.")] = None,
    space: Annotated[
        Path | None, typer.Option(help="Folder for a Space with the web app for this adapter. Needs the extra `app`.")
    ] = None,
) -> None:
    """Make an adapter folder a complete Hub repo: a new model card, pipeline.py, for SDXL block.py, and a Space."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from ..adapter.config import FaceSnapConfig
    from ..adapter.folder import is_local
    from ..adapter.model_card import read_eval_results, read_sections, write_model_card
    from ..errors import InputError, one_line
    from ..files import atomic_file
    from ..preflight import check_device, refuse

    if not photo:
        of_pictures = {"prompt": prompt or None, "steps": steps, "guidance_scale": guidance_scale}
        refuse("it is about pictures of a --photo", **of_pictures, seed=seed, device=device)
    if results is None:
        refuse("it is a row of --results", method=method)
    if repo_id.count("/") != 1:
        raise InputError(f"repo_id {repo_id!r} must be owner/name")
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise InputError(
            f"repo_id {repo_id!r} cannot be a name on the Hub ({one_line(error)}); give another"
        ) from None
    config = FaceSnapConfig.load(adapter)
    config = config.replace(base_model=base_model or config.base_model, license=license or config.license)
    for option, value in (("--space", space), ("--photo", photo)):
        if value and config.base_model is None:
            raise InputError(f"{option} needs a base model; name it with --base-model")
    if config.base_model is not None:
        is_hub_name = config.base_model.count("/") == 1 and not config.base_model.startswith(("/", ".", "~"))
        if is_local(config.base_model) and not is_hub_name:
            raise InputError(
                f"--base-model {config.base_model} is a folder of this machine, whose path would be published; give its name on"
                " the Hub"
            )
        _check_base_model(config.base_model, config.base_family)
    card = adapter / "README.md"
    sections, eval_results = read_sections(card), read_eval_results(card)
    if results is not None:
        from ..evaluation.model_index import read_evaluation

        sections["evaluation"], eval_results = read_evaluation(results, method)
    if photo:
        from .card_pictures import draw_pictures

        device = device or "cpu"
        check_device(device)
        grid, caption = draw_pictures(
            adapter,
            config,
            photo,
            prompt or (),
            steps=steps,
            guidance_scale=guidance_scale,
            seed=seed or 0,
            device=device,
        )
        with atomic_file(adapter / PICTURES) as temporary:
            grid.save(temporary, format="JPEG", quality=90)
        sections["pictures"] = (
            f"![Reference photos, and pictures that this adapter made of them]({PICTURES})\n\n{caption}"
        )

    config.save(adapter)
    is_xl = "xl" in (config.base_family or "")
    pipeline = "FaceSnapXLPipeline" if is_xl else "FaceSnapPipeline"
    with atomic_file(adapter / "pipeline.py") as temporary:
        temporary.write_text(_PIPELINE.format(pipeline=pipeline, repo_id=repo_id))
    if is_xl:
        with atomic_file(adapter / "block.py") as temporary:
            temporary.write_text(_BLOCK.format(repo_id=repo_id))
    write_model_card(card, config, repo_id, datasets=dataset, eval_results=eval_results, **sections)
    if space is not None:
        from ..app.space import write_space

        write_space(space, repo_id.split("/")[1], config.base_model, repo_id, config.license)
        typer.echo(f"wrote a Space to {space}: hf upload {repo_id} {space} --repo-type space")
    for path in sorted(adapter.rglob("*")):
        if path.is_file():
            typer.echo(path.relative_to(adapter))
    for section, option in (("pictures", "--photo"), ("evaluation", "--results")):
        if section not in sections:
            typer.echo(f"the model card has no {section}; {option} adds it", err=True)


def _check_base_model(name: str, family: str | None) -> None:
    """Raises [`InputError`] unless a base model is there, and of the family that the adapter is made for."""

    from ..base_models import family_of, unet_without_weights
    from ..errors import InputError, one_line

    try:
        own = family_of(unet_without_weights(name))
    except Exception as error:  # of diffusers, huggingface_hub and the connection
        raise InputError(
            f"base model {name!r} could not be checked ({one_line(error)}); name one on the Hub with --base-model"
        ) from None
    if family is not None and own != family:
        raise InputError(
            f"base model {name!r} is of family {own}, the adapter is for {family}; name the one it belongs to"
        )
