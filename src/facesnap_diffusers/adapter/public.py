"""Public adapters of other authors: their repositories and files, what each is made for, and which are loaded by default."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from diffusers import UNet2DConditionModel

from ..base_models import UNET_CONFIGS, family_of, is_sdxl
from ..errors import AdapterError


#: The adapter that ships with this package, and the family of its base model.
NANO_ADAPTER = Path(__file__).parent.parent / "assets" / "nano" / "adapter"
NANO_FAMILY = "custom-128"

#: Folder of InstantID's ControlNet.
CONTROLNET_FOLDER = "ControlNetModel"

W600K = "insightface/w600k_r50"
GLINTR100 = "insightface/glintr100"

_SUFFIXES = (".bin", ".safetensors", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True)
class PublicAdapter:
    r"""
    One file of a public repository.

    Attributes:
        repo (`str`): Name of the repository on the Hub.
        file (`str`): Path of the file in it.
        family (`str`): Family of the base models that it is made for: `"sd1"` or `"sdxl"`.
        face_encoder_id (`str`, *optional*): The face recognizer that it takes; `None`: any analyzer finds the face.
        license (`str`): License of the weights, as the Hub names it.
        terms (`str`): What the authors allow, in words.
        scales (`dict`): The scales that the authors' scripts use.
        controlnet (`str`, *optional*): Folder of the ControlNet that belongs to it.
        default (`bool`): Whether the name of the repository alone means this file, for its family.
    """

    repo: str
    file: str
    family: str
    face_encoder_id: str | None
    license: str
    terms: str
    scales: dict[str, float] = field(default_factory=lambda: {"identity_scale": 1.0})
    controlnet: str | None = None
    default: bool = False

    @property
    def authors(self) -> str:
        return self.repo.partition("/")[0]


# Scales, from the authors' code and examples:
# - FaceID: `generate(..., scale=1.0, s_scale=1.0)` in ip_adapter/ip_adapter_faceid.py of github.com/tencent-ailab/IP-Adapter;
#   the examples in the README of h94/IP-Adapter-FaceID give no scale, and `s_scale=1.0` for FaceID-Plus v2.
# - plus-face, full-face: `generate(..., scale=1.0)` in ip_adapter/ip_adapter.py there; the demo of plus-face gives no scale.
#   "In most cases, setting scale=0.5 can get good results" in its README is about pictures as prompts in general.
# - InstantID: `controlnet_conditioning_scale=0.8, ip_adapter_scale=0.8` in the README of github.com/InstantID/InstantID, whose
#   usage tips lower both against over-saturation.


def _faceid(file: str, family: str, default: bool = False) -> PublicAdapter:
    terms = "for research only, not for commercial use"
    return PublicAdapter("h94/IP-Adapter-FaceID", file, family, W600K, "other", terms, default=default)


def _face(file: str, family: str, default: bool = False) -> PublicAdapter:
    return PublicAdapter("h94/IP-Adapter", file, family, None, "apache-2.0", "Apache-2.0", default=default)


PUBLIC_ADAPTERS = (
    _faceid("ip-adapter-faceid-plusv2_sd15.bin", "sd1", default=True),
    _faceid("ip-adapter-faceid_sd15.bin", "sd1"),
    _faceid("ip-adapter-faceid-plus_sd15.bin", "sd1"),
    _faceid("ip-adapter-faceid-portrait_sd15.bin", "sd1"),
    _faceid("ip-adapter-faceid-portrait-v11_sd15.bin", "sd1"),
    _faceid("ip-adapter-faceid-plusv2_sdxl.bin", "sdxl", default=True),
    _faceid("ip-adapter-faceid_sdxl.bin", "sdxl"),
    _faceid("ip-adapter-faceid-portrait_sdxl.bin", "sdxl"),
    _faceid("ip-adapter-faceid-portrait_sdxl_unnorm.bin", "sdxl"),
    _face("models/ip-adapter-plus-face_sd15.safetensors", "sd1", default=True),
    _face("models/ip-adapter-full-face_sd15.safetensors", "sd1"),
    _face("sdxl_models/ip-adapter-plus-face_sdxl_vit-h.safetensors", "sdxl", default=True),
    PublicAdapter(
        "InstantX/InstantID",
        "ip-adapter.bin",
        "sdxl",
        GLINTR100,
        "apache-2.0",
        "Apache-2.0; its face recognizer is for non-commercial research only",
        {"identity_scale": 0.8, "landmark_scale": 0.8},
        CONTROLNET_FOLDER,
        default=True,
    ),
)

#: What `load_facesnap_adapter()` loads where it is given no name.
DEFAULT_ADAPTERS: dict[str, str | Path] = {
    "sd1": "h94/IP-Adapter-FaceID",
    "sdxl": "InstantX/InstantID",
    NANO_FAMILY: NANO_ADAPTER,
}


def files_of(name: Any) -> list[PublicAdapter]:
    """The known files of a public repository, whose name may be in any case; none for a folder or an unknown one."""
    if not isinstance(name, (str, Path)) or Path(name).exists():
        return []
    return [adapter for adapter in PUBLIC_ADAPTERS if adapter.repo.lower() == str(name).lower()]


def find_public_adapter(name: Any, weight_name: str | None, unet: UNet2DConditionModel) -> PublicAdapter | None:
    r"""
    The known file that a name means, checked before anything is downloaded.

    Args:
        name: What a user gave as the adapter's name; the repository's name may be in any case.
        weight_name (`str`, *optional*): The file, in any case, with or without its folder and suffix. By default the
            one that the table recommends for the base model.
        unet (`UNet2DConditionModel`): That of the base model.

    Returns:
        [`PublicAdapter`], or `None` where the table does not contain it.

    Raises:
        AdapterError: It is made for base models of another family.
    """
    adapters = files_of(name)
    if not adapters:
        return None
    fitting = [adapter for adapter in adapters if fits(adapter.family, unet)]
    if weight_name is not None:
        adapter = next((adapter for adapter in adapters if _stem(adapter.file) == _stem(weight_name)), None)
        if adapter is None or adapter in fitting:
            return adapter
        made_for = f"{Path(adapter.file).name} of {name} is"
    else:
        adapter = next((adapter for adapter in fitting if adapter.default), None)
        if adapter is not None:
            return adapter
        made_for = f"{name} is"
    families = " and ".join(dict.fromkeys(adapter.family for adapter in ([adapter] if adapter else adapters)))
    raise AdapterError(
        f"{made_for} made for base models of family {families}, this one is of {family_of(unet)};"
        f" {alternatives(unet, name)}"
    )


def alternatives(unet: UNet2DConditionModel, name: Any = None) -> str:
    """What to load instead on a base model: known files that fit it, those of the repository `name` first."""
    fitting = [adapter for adapter in PUBLIC_ADAPTERS if fits(adapter.family, unet)]
    own = [adapter for adapter in files_of(name) if adapter in fitting]
    if own:
        return f"its files for this one are {', '.join(Path(adapter.file).name for adapter in own)}"
    if fitting and family_of(unet) in UNET_CONFIGS:
        repos = dict.fromkeys(adapter.repo for adapter in fitting)
        return f"for this one there are {', '.join(repos)}"
    return "load an adapter that was trained for this one, or train one: see examples/training in the repository"


def default_adapter(family: str) -> str | Path:
    """What `load_facesnap_adapter()` loads on a base model of a family; raises [`AdapterError`] where there is nothing."""
    if family not in DEFAULT_ADAPTERS:
        known = ", ".join(str(adapter) for name, adapter in DEFAULT_ADAPTERS.items() if name != NANO_FAMILY)
        raise AdapterError(
            f"there is no public adapter for base models of family {family}; name your own with"
            f" load_facesnap_adapter(repo_or_folder), or use a base model of family sd1 or sdxl, which have {known}"
        )
    return DEFAULT_ADAPTERS[family]


def described(adapter: PublicAdapter) -> str:
    """What was loaded, by whom and under which terms, in one line."""
    return (
        f"loaded {adapter.repo}/{adapter.file} by {adapter.authors} ({adapter.terms}), the default for base models of family"
        f" {adapter.family}; it is not a FaceSnap adapter"
    )


def fits(family: str, unet: UNet2DConditionModel) -> bool:
    """Whether an adapter of a family may fit a base model: for one of no known family only its kind is compared."""
    own = family_of(unet)
    return family == own if own in UNET_CONFIGS else (family == "sdxl") == is_sdxl(unet)


def _stem(file: str) -> str:
    name = PurePosixPath(file).name.lower()
    suffix = next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")
    return name.removesuffix(suffix)
