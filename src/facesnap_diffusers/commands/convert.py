"""`facesnap convert`: adapters of other projects to FaceSnap's format, and back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer


if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


_CONVERTED = (
    "Converted from `{origin}`. Its training data, results and license are those of its authors: see their model card."
)


def convert(
    adapter: Annotated[str, typer.Argument(help="File, folder or Hub repo of the adapter.")],
    output: Annotated[Path, typer.Argument(help="Folder to write; with --to ip-adapter a .safetensors or .bin file.")],
    weight_name: Annotated[str | None, typer.Option(help="File in that folder or repo.")] = None,
    to: Annotated[
        str, typer.Option(help="facesnap, or ip-adapter (an adapter of ours for stock diffusers).")
    ] = "facesnap",
    base: Annotated[
        str | None,
        typer.Option(help="Base model: a folder with unet/config.json, or sd1, sd2, sdxl. Default: by width."),
    ] = None,
    image_encoder: Annotated[
        str | None, typer.Option(help="CLIP vision model, folder or repo; only FaceID-Plus and plus-face need one.")
    ] = None,
    plus_v2: Annotated[
        bool | None, typer.Option(help="FaceID-Plus: whether it is version 2. Default: by the file's name.")
    ] = None,
    structure_scale: Annotated[
        float | None, typer.Option(min=0, help="FaceID-Plus version 2: weight of the face's structure. Default: 1.")
    ] = None,
    controlnet: Annotated[
        str | None, typer.Option(help="InstantID's ControlNet, file, folder or repo, where it is not beside its file.")
    ] = None,
    landmarks_from: Annotated[
        str | None, typer.Option(help="Another adapter: combine its FFRNet with the identity attention of the first.")
    ] = None,
    ffrnet_rank: Annotated[
        int | None,
        typer.Option(min=1, help="Make FFRNet small: its difference to the UNet of --base, cut to this rank."),
    ] = None,
) -> None:
    """Convert a checkpoint of IP-Adapter for faces or InstantID to a FaceSnap adapter, or a FaceSnap adapter to an IP-Adapter."""
    from ..errors import InputError
    from ..preflight import make_output_folder, refuse

    if to not in ("facesnap", "ip-adapter"):
        raise InputError(f"to is {to!r}; choose facesnap or ip-adapter")
    if landmarks_from is not None and (to != "facesnap" or ffrnet_rank is not None):
        raise InputError("--landmarks-from makes a FaceSnap adapter; leave out --to ip-adapter and --ffrnet-rank")
    if ffrnet_rank is not None:
        if to != "facesnap" or base is None or not Path(base).is_dir():
            raise InputError(
                "--ffrnet-rank makes a FaceSnap adapter and needs --base, a folder of the base model's weights"
            )
        # no adapter with an FFRNet is FaceID-Plus
        refuse(
            "--ffrnet-rank only changes FFRNet",
            image_encoder=image_encoder,
            plus_v2=plus_v2,
            structure_scale=structure_scale,
        )
        make_output_folder(output.parent)
        _with_small_ffrnet(adapter, output, weight_name, base, controlnet, ffrnet_rank)
    elif to == "facesnap":
        make_output_folder(output.parent)
        options = {"plus_v2": plus_v2, "structure_scale": structure_scale, "controlnet": controlnet}
        if landmarks_from is not None:
            _combined(adapter, landmarks_from, output, weight_name, base, image_encoder, options)
            typer.echo(output)
            return
        _to_facesnap(adapter, output, weight_name, base, image_encoder, options)
    else:
        refuse(
            "--to ip-adapter takes a FaceSnap adapter",
            weight_name=weight_name,
            controlnet=controlnet,
            image_encoder=image_encoder,
            plus_v2=plus_v2,
            structure_scale=structure_scale,
        )
        make_output_folder(output.parent)
        _to_ip_adapter(adapter, output, base)
    typer.echo(output)


def _to_facesnap(
    adapter: str,
    output: Path,
    weight_name: str | None,
    base: str | None,
    image_encoder: str | None,
    options: dict[str, Any],
) -> None:
    import torch

    from ..adapter.folder import load_image_encoder, save_adapter_folder
    from ..adapter.model_card import write_model_card
    from ..errors import InputError
    from ..interop.loading import bind_image_encoder, find_checkpoint, is_third_party, load_third_party
    from ..preflight import refuse

    if not is_third_party(adapter, weight_name):
        raise InputError(f"adapter {adapter} needs weight_name: which of its files?")
    base = base or _public_family(adapter, weight_name)
    if base is None:
        tensors = find_checkpoint(adapter, weight_name).ip_adapter
        width = next((tensor.shape[1] for key, tensor in tensors.items() if key.endswith("to_k_ip.weight")), 0)
        base = {768: "sd1", 1024: "sd2", 2048: "sdxl"}.get(width)
        if base is None:
            raise InputError(
                f"adapter {adapter} takes tokens of width {width}, which no known family has; name the base model with --base"
            )
    given = {name: value for name, value in options.items() if value is not None}
    config, modules = load_third_party(adapter, weight_name, _base_unet(base), **given)
    if config.image_encoder_id is None:
        refuse(f"{adapter} is a kind of adapter without an image encoder", image_encoder=image_encoder)
    else:
        source = config.replace(image_encoder_id=image_encoder or config.image_encoder_id)
        modules |= load_image_encoder(source, Path(), None, torch.float32, None, {})
    config = bind_image_encoder(config, modules)
    save_adapter_folder(output, config, modules, output.name)
    write_model_card(output / "README.md", config, output.name, training=_origin(adapter, weight_name))


def _origin(adapter: str, weight_name: str | None) -> str:
    """What the model card says of where an adapter comes from; folders of this machine are not named."""
    origin = "/".join(filter(None, [Path(adapter).name if Path(adapter).exists() else adapter, weight_name]))
    return _CONVERTED.format(origin=origin)


def _combined(
    adapter: str,
    landmarks_from: str,
    output: Path,
    weight_name: str | None,
    base: str | None,
    image_encoder: str | None,
    options: dict[str, Any],
) -> None:
    import torch

    from ..adapter.config import FaceSnapConfig
    from ..adapter.folder import AdapterSource, load_image_encoder, read_adapter, save_adapter_folder
    from ..adapter.model_card import write_model_card
    from ..errors import InputError

    base = base or _public_family(landmarks_from, None) or _public_family(adapter, weight_name)
    if base is None:
        raise InputError("--landmarks-from needs --base: the base model of both adapters, or sd1, sd2, sdxl")
    unet = _base_unet(base)
    encoder = load_image_encoder(FaceSnapConfig(image_encoder_id=image_encoder), Path(), None, torch.float32, None, {})
    source = AdapterSource(
        adapter,
        weight_name=weight_name,
        landmarks_from=landmarks_from,
        controlnet=options["controlnet"],
        faceid_plus_v2=options["plus_v2"],
        faceid_structure_scale=1.0 if options["structure_scale"] is None else options["structure_scale"],
        dtype=torch.float32,
        image_encoder=encoder.get("face_image_encoder"),
    )
    config, modules = read_adapter(source, unet)
    save_adapter_folder(output, config, modules, output.name)
    names = [Path(name).name if Path(name).exists() else name for name in (adapter, landmarks_from)]
    training = _CONVERTED.format(origin="` and `".join(names))
    write_model_card(output / "README.md", config, output.name, training=training)


def _public_family(adapter: str, weight_name: str | None) -> str | None:
    """The base family of a known public file; raises [`InputError`] where the repository has files for several."""
    from ..adapter.public import files_of
    from ..errors import InputError

    known = [
        line
        for line in files_of(adapter)
        if weight_name is None or Path(line.file).stem.lower() == Path(weight_name).stem.lower()
    ]
    families = list(dict.fromkeys(line.family for line in known))
    if len(families) > 1:
        raise InputError(f"{adapter} has files for {' and '.join(families)}; say which with --base or --weight-name")
    return families[0] if families else None


def _with_small_ffrnet(
    adapter: str, output: Path, weight_name: str | None, base: str, controlnet: str | None, rank: int
) -> None:
    import torch
    from diffusers import UNet2DConditionModel

    from ..adapter.folder import AdapterSource, read_adapter, save_adapter_folder
    from ..adapter.model_card import write_model_card
    from ..errors import InputError, one_line
    from ..models.ffrnet import FFRNet

    try:
        unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet", dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise InputError(f"base {base} has no UNet that could be loaded ({one_line(error)})") from None
    config, modules = read_adapter(AdapterSource(adapter, weight_name=weight_name, controlnet=controlnet), unet)
    if modules.get("ffrnet") is None:
        raise InputError(f"adapter {adapter} does not contain an FFRNet; leave out --ffrnet-rank")
    modules["ffrnet"], loss = FFRNet.from_controlnet(modules["ffrnet"], unet, rank)
    save_adapter_folder(output, config, modules, output.name)
    write_model_card(output / "README.md", config, output.name, training=_origin(adapter, weight_name))
    typer.echo(loss)


def _to_ip_adapter(adapter: str, output: Path, base: str | None) -> None:
    import torch

    from ..adapter.config import FaceSnapConfig
    from ..adapter.folder import load_part
    from ..adapter.hub import resolve_adapter_folder
    from ..errors import InputError
    from ..interop.export import write_ip_adapter

    folder = resolve_adapter_folder(adapter)
    family = base or FaceSnapConfig.load(folder).base_family
    if family is None:
        raise InputError(f"adapter {adapter} does not name its base model; name it with --base")
    mixer, attention = (
        load_part(part, folder / part, None, torch.float32) for part in ("mixer", "identity_attention")
    )
    write_ip_adapter(output, mixer, attention, _base_unet(family))


def _base_unet(base: str) -> "UNet2DConditionModel":
    """The base model's UNet without weights."""
    from ..base_models import UNET_CONFIGS, empty_unet, unet_without_weights
    from ..errors import InputError

    if base in UNET_CONFIGS:
        return empty_unet(base)
    if not (Path(base) / "unet" / "config.json").is_file():
        raise InputError(f"base {base} is neither of {', '.join(UNET_CONFIGS)} nor a folder with unet/config.json")
    return unet_without_weights(base)
