"""`facesnap info`: the parts of an adapter and their sizes, and the memory that a call takes."""

from itertools import groupby
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer


if TYPE_CHECKING:
    import torch
    from rich.console import Group
    from rich.table import Table


def info(
    adapter: Annotated[
        str | None,
        typer.Argument(help="Adapter folder or Hub repo; nano: the one in this package. Without: a fresh one."),
    ] = None,
    family: Annotated[str, typer.Option(help="Base model of the fresh adapter: sd1, sd2 or sdxl.")] = "sd1",
    variant: Annotated[str | None, typer.Option(help="Variant of the weights, e.g. fp16.")] = None,
    public: Annotated[
        bool, typer.Option("--public", help="The public adapters of other authors that load by their name.")
    ] = False,
    memory: Annotated[
        bool,
        typer.Option("--memory", help="What a call takes of a device's memory, by the way that weights are kept."),
    ] = False,
    base: Annotated[
        str | None,
        typer.Option(help="For --memory: sd1, sd2, sdxl, or a folder or Hub repo of a base model; that of --family."),
    ] = None,
    ffrnet_rank: Annotated[
        int | None, typer.Option(min=1, help="For --memory: with a small FFRNet of this rank.")
    ] = None,
    side: Annotated[int | None, typer.Option(help="For --memory: height and width of the image, in pixels.")] = None,
) -> None:
    """Print the parts of an adapter with their parameters and bytes, and what it is made for."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ..errors import InputError, as_integer
    from ..nano.naming import resolve_nano
    from ..preflight import quiet_libraries

    quiet_libraries()
    if public:
        if adapter is not None or variant is not None:
            raise InputError("--public lists all public adapters; leave out the other arguments")
        Console().print(_public_tables())
        return
    if memory:
        if adapter is not None or variant is not None:
            raise InputError(
                "--memory counts a fresh adapter; leave out the adapter and give --base and --ffrnet-rank"
            )
        if side is not None:
            as_integer("side", side, 64, 8192)
        Console().print(_memory_table(base or family, side, ffrnet_rank))
        return
    if base is not None or ffrnet_rank is not None or side is not None:
        raise InputError("--base, --ffrnet-rank and --side are for --memory; add it or leave them out")
    if adapter is None and variant is not None:
        raise InputError("variant needs an adapter: a fresh one has no stored weights")
    if adapter is None:
        title, sizes, stored = f"fresh adapter for {family}", _fresh_sizes(family), "MB in half precision"
    else:
        title, stored = adapter, "MB as stored"
        adapter = resolve_nano(adapter, "adapter")
        sizes = _stored_sizes(adapter, variant)
    sizes["all"] = tuple(sum(column) for column in zip(*sizes.values(), strict=True))

    table = Table("part", title=Text(title, "table.title"))
    for column in ("parameters", stored):
        table.add_column(column, justify="right")
    for part, (parameters, size) in sizes.items():
        table.add_row(part, f"{parameters:,}", f"{size / 1e6:,.1f}", end_section=part == list(sizes)[-2])
    Console().print(table)
    if adapter is not None:
        Console().print(_facts(adapter), soft_wrap=True, markup=False, emoji=False)


def _public_tables() -> "Group":
    """The files of each repository under its name; so names are whole in a terminal of 80 columns."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from ..adapter.public import PUBLIC_ADAPTERS

    blocks: list[Text | Table] = []
    for (repo, recognizer, terms), lines in groupby(
        PUBLIC_ADAPTERS, key=lambda line: (line.repo, line.face_encoder_id, line.terms)
    ):
        table = Table("file", "base", "scales", box=None, padding=(0, 2))
        table.columns[0].no_wrap = True
        for line in lines:
            name = Path(line.file).name + (" *" if line.default else "")
            table.add_row(name, line.family, " / ".join(f"{scale:g}" for scale in line.scales.values()))
        facts = f"  face recognizer {recognizer}; {terms}" if recognizer else f"  any face recognizer; {terms}"
        blocks += [Text(repo, "bold"), Text(facts), table, Text()]
    return Group(*blocks, Text("* the file that the repository's name alone means, for its base model"))


def _memory_table(base: str, side: int | None, ffrnet_rank: int | None) -> "Table":
    from rich.table import Table
    from rich.text import Text

    from ..memory import count_modes

    ffrnet = "full FFRNet" if ffrnet_rank is None else f"FFRNet of rank {ffrnet_rank}"
    table = Table("", title=Text(f"a call with a face on {base}, {ffrnet}: GB", "table.title"))
    for column in ("all weights", "at most on the device"):
        table.add_column(column, justify="right")
    for mode in count_modes(base, side, ffrnet_rank=ffrnet_rank):
        table.add_row(mode.name, f"{mode.weights / 1e9:.1f}", f"{mode.peak / 1e9:.1f}")
    table.caption = "by arithmetic, one image with guidance; without CUDA's own 0.3 to 0.6 GB, and face analyzers"
    return table


def _facts(adapter: str) -> str:
    """What an adapter's config says, in one line."""
    from ..adapter.config import FaceSnapConfig
    from ..adapter.hub import resolve_adapter_folder

    config = FaceSnapConfig.load(resolve_adapter_folder(adapter, config_only=True))
    scales, of_ffrnet = config.scales, config.ffrnet_config
    licenses = [config.license, *([] if of_ffrnet is None else [of_ffrnet.license])]
    return (
        f"base family {config.base_family}, face recognizer {' and '.join(config.face_encoder_ids) or 'any'}, image encoder"
        f" {' and '.join(config.image_encoder_ids) or 'none'}, recommended scales: identity"
        f" {scales['identity_scale']:g}, landmarks {scales['landmark_scale']:g}, license"
        f" {' and '.join(name or 'not stated' for name in dict.fromkeys(licenses))}"
        f"{'' if of_ffrnet is None else '; FFRNet is of another adapter than the identity attention'}"
    )


def _fresh_sizes(family: str) -> dict[str, tuple[int, int]]:
    import torch

    from ..adapter.config import FaceSnapConfig
    from ..base_models import UNET_CONFIGS, empty_unet
    from ..errors import InputError
    from ..models.attention import IdentityAttention
    from ..models.ffrnet import FFRNet
    from ..models.landmark_predictor import load_landmark_predictor
    from ..models.mixer import FacialAttributeMixer

    if family not in UNET_CONFIGS:
        raise InputError(f"family {family!r} is unknown; choose one of {', '.join(UNET_CONFIGS)}")
    unet = empty_unet(family)
    with torch.device("meta"):
        parts = {
            "mixer": FacialAttributeMixer(unet.config.cross_attention_dim, num_tokens=FaceSnapConfig().num_tokens),
            "identity_attention": IdentityAttention.from_unet(unet),
            "ffrnet": FFRNet.from_unet(unet),
        }
    parts["landmark_predictor"] = load_landmark_predictor()
    return {name: _size(part.half()) for name, part in parts.items()}


def _size(part: "torch.nn.Module") -> tuple[int, int]:
    tensors = part.state_dict().values()
    return sum(parameter.numel() for parameter in part.parameters()), sum(tensor.nbytes for tensor in tensors)


def _stored_sizes(adapter: str, variant: str | None) -> dict[str, tuple[int, int]]:
    from ..adapter.config import (
        FFRNET_IMAGE_ENCODER_FOLDER,
        FFRNET_MIXER_FOLDER,
        IMAGE_ENCODER_FOLDER,
        FaceSnapConfig,
    )
    from ..adapter.hub import resolve_adapter_folder
    from ..adapter.public import files_of
    from ..errors import AdapterError, InputError

    known = files_of(adapter)
    if known:
        names = ", ".join(Path(line.file).name for line in known)
        raise InputError(
            f"adapter {known[0].repo} is in the table of facesnap info --public; convert one of {names} first"
        )
    folder = resolve_adapter_folder(adapter, variant=variant)
    config = FaceSnapConfig.load(folder)
    parts = [
        *config.parts,
        *([FFRNET_MIXER_FOLDER] if config.ffrnet_config is not None else []),
        *(name for name in config.image_encoder_ids if name in (IMAGE_ENCODER_FOLDER, FFRNET_IMAGE_ENCODER_FOLDER)),
    ]
    suffix = f".{variant}.safetensors" if variant else ".safetensors"
    files = {part: sorted((folder / part).glob(f"*{suffix}")) for part in parts}
    missing = [part for part in parts if not files[part]]
    if missing:
        weights = f"weights of variant {variant!r}" if variant else "weights"
        raise AdapterError(f"adapter {adapter!r} has no {weights} in {', '.join(missing)}; choose another variant")
    return {part: _count(files[part]) for part in parts}


def _count(files: list[Path]) -> tuple[int, int]:
    from safetensors import safe_open

    parameters = 0
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            names = tensors.keys()
            parameters += sum(prod(tensors.get_slice(name).get_shape()) for name in names)
    return parameters, sum(file.stat().st_size for file in files)
