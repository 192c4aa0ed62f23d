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


def package_hub_repo(
    adapter: Annotated[Path, typer.Argument(help="Adapter folder, as save_facesnap_adapter writes it.")],
    repo_id: Annotated[str, typer.Option(help="Name of the repo on the Hub, owner/name.")],
    base_model: Annotated[str | None, typer.Option(help="Base model on the Hub that it was trained on.")] = None,
    license: Annotated[str | None, typer.Option(help="License of the weights, e.g. apache-2.0.")] = None,
    dataset: Annotated[list[str] | None, typer.Option(help="Data set on the Hub; may be given several times.")] = None,
    space: Annotated[
        Path | None, typer.Option(help="Folder for a Space with the web app for this adapter. Needs the extra `app`.")
    ] = None,
) -> None:
    """Make an adapter folder a complete Hub repo: pipeline.py, for SDXL block.py, and a new model card."""
    from ..adapter.config import FaceSnapConfig
    from ..adapter.model_card import read_training_section, write_model_card
    from ..errors import InputError
    from ..files import atomic_file

    if repo_id.count("/") != 1:
        raise InputError(f"repo_id {repo_id!r} must be owner/name")
    config = FaceSnapConfig.load(adapter)
    config = config.replace(base_model=base_model or config.base_model, license=license or config.license)
    if space is not None and config.base_model is None:
        raise InputError("--space needs a base model; name it with --base-model")
    config.save(adapter)
    is_xl = "xl" in (config.base_family or "")
    pipeline = "FaceSnapXLPipeline" if is_xl else "FaceSnapPipeline"
    with atomic_file(adapter / "pipeline.py") as temporary:
        temporary.write_text(_PIPELINE.format(pipeline=pipeline, repo_id=repo_id))
    if is_xl:
        with atomic_file(adapter / "block.py") as temporary:
            temporary.write_text(_BLOCK.format(repo_id=repo_id))
    card = adapter / "README.md"
    write_model_card(card, config, pipeline, repo_id, datasets=dataset, training=read_training_section(card))
    if space is not None:
        from ..app.space import write_space

        write_space(space, repo_id.split("/")[1], config.base_model, repo_id, config.license)
        typer.echo(f"wrote a Space to {space}: hf upload {repo_id} {space} --repo-type space")
    for path in sorted(adapter.rglob("*")):
        if path.is_file():
            typer.echo(path.relative_to(adapter))
