"""What an adapter is made for: the `facesnap_config.json` of its folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import AdapterError, one_line
from ..files import atomic_file
from ..settings import parse_settings, strict_dataclass


CONFIG_NAME = "facesnap_config.json"
FORMAT_VERSION = 1

#: The parts of an adapter: each a folder of it, and a component of the pipeline.
PARTS = ("mixer", "identity_attention", "ffrnet", "landmark_predictor")

#: Folder of the CLIP image encoder, in adapters that bring their own.
IMAGE_ENCODER_FOLDER = "image_encoder"

#: The same for what FFRNet has of its own where it comes from another adapter: its mixer and its image encoder.
FFRNET_MIXER_FOLDER, FFRNET_IMAGE_ENCODER_FOLDER = "ffrnet_mixer", "ffrnet_image_encoder"

#: The scales of an adapter on a pipeline, and what they are where nothing else is recommended.
DEFAULT_SCALES = {"identity_scale": 1.0, "landmark_scale": 1.0}

# more than any adapter has, and far from what memory cannot hold
_MAX_WIDTH, _MAX_TOKENS = 65_536, 4096
Width = Annotated[int, Field(ge=1, le=_MAX_WIDTH)]
Scale = Annotated[float, Field(ge=0)]


@strict_dataclass(frozen=True, error=AdapterError)
class FaceSnapConfig:
    r"""
    What an adapter is made for: the `facesnap_config.json` of its folder. How its parts are built stands in the
    `config.json` of each.

    Attributes:
        face_encoder_id (`str`): The face recognizer whose embeddings it was trained with, as `FaceAnalyzer.encoder` says.
        face_embed_dim (`int`, *optional*): Width of those embeddings. `None`: the mixer takes none.
        image_encoder_id (`str`, *optional*): Hub repo or folder of the CLIP vision model whose hidden states the mixer
            takes; `"image_encoder"` if it stands in the adapter's own folder. `None`: the mixer takes none.
        image_encoder_fingerprint (`str`, *optional*): Of the image encoder in the adapter's own folder, made when it is
            saved: what was encoded by one folder's encoder is refused by another's.
        normalized_embeds (`bool`): Whether it was trained with face embeddings of unit length. Otherwise they need the
            length that the recognizer gives them.
        image_crop (`str`): What the image encoder sees of the photo: `"head"` ([`align_for_clip`]) or `"arcface"`, the
            recognizer's tight crop.
        landmark_style (`str`): How landmarks are drawn: `"facesnap72"`, or `"instantid5"`: InstantID's five points.
        num_tokens (`int`): Number of identity tokens.
        parts (`list[str]`): The parts that it has, of `PARTS`.
        recommended_scales (`dict[str, float]`): `"identity_scale"` and `"landmark_scale"` that its authors recommend,
            which hold until `set_facesnap_scale`; 1.0 for what is left out.
        base_family (`str`, *optional*): Family of the base model: `"sd1"`, `"sd2"`, `"sdxl"`, or `"custom-<width>"`.
        base_model (`str`, *optional*): The base model it was trained on.
        license (`str`, *optional*): License of its weights, for the model card.
        identity_loss_recognizers (`list[str]`): The recognizers whose identity loss it was trained with: their names as
            that of `face_encoder_id`, or else those of their files or functions. Saved only where there are some.
        ffrnet_config ([`FaceSnapConfig`], *optional*): Where FFRNet comes from another adapter than the identity
            attention: what that one is made for. FFRNet then takes identity tokens of its own, and everything above but
            `parts` and `recommended_scales` is about the identity attention.
        format_version (`int`): Version of this file's format.

    Raises:
        AdapterError: A value has a wrong type or is out of range.
    """

    face_encoder_id: str = "insightface/w600k_r50"
    face_embed_dim: Width | None = 512
    image_encoder_id: str | None = "openai/clip-vit-large-patch14"
    image_encoder_fingerprint: str | None = None
    normalized_embeds: bool = True
    image_crop: Literal["head", "arcface"] = "head"
    landmark_style: Literal["facesnap72", "instantid5"] = "facesnap72"
    num_tokens: Annotated[int, Field(ge=1, le=_MAX_TOKENS)] = 16
    parts: list[str] = field(default_factory=lambda: ["mixer", "identity_attention", "ffrnet"])
    recommended_scales: dict[Literal["identity_scale", "landmark_scale"], Scale] = field(default_factory=dict)
    base_family: str | None = None
    base_model: str | None = None
    license: str | None = None
    identity_loss_recognizers: list[str] = field(default_factory=list)
    ffrnet_config: FaceSnapConfig | None = None
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        check_parts(self.parts)
        if self.ffrnet_config is not None and ("ffrnet" not in self.parts or self.ffrnet_config.ffrnet_config):
            raise AdapterError("ffrnet_config goes with the part ffrnet, and has none of its own")

    def save(self, folder: str | Path) -> None:
        """Writes the config into an adapter's folder."""
        with atomic_file(Path(folder) / CONFIG_NAME) as path:
            path.write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> FaceSnapConfig:
        """Reads the config of an adapter folder. Raises [`AdapterError`] where there is none that fits."""
        path = Path(folder) / CONFIG_NAME
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise AdapterError(
                f"{folder} has no {CONFIG_NAME}, so it is not a FaceSnap adapter; name one that is, or with weight_name="
                " a file of IP-Adapter FaceID or InstantID"
            ) from None
        except (OSError, ValueError, RecursionError) as error:
            raise AdapterError(
                f"{path} cannot be read ({one_line(error)}); download or save the adapter again"
            ) from None
        return cls.from_dict(values, source=str(path))

    @classmethod
    def from_dict(cls, values: Any, source: str = "config") -> FaceSnapConfig:
        """Makes a config from plain values. Raises [`AdapterError`] for unknown versions, names and types."""
        if not isinstance(values, dict):
            raise AdapterError(f"{source} holds {type(values).__name__} instead of names and values")
        version = values.get("format_version")
        if version != FORMAT_VERSION:
            raise AdapterError(
                f"{source} has format_version {version!r}, this package reads {FORMAT_VERSION};"
                " install the version of facesnap-diffusers that the adapter was made with"
            )
        return parse_settings(cls, values, source, AdapterError)

    def to_dict(self) -> dict[str, Any]:
        """The plain values, from which [`from_dict`] makes the config again."""
        values = asdict(self)
        for config in (values, values["ffrnet_config"]):
            for name in ("identity_loss_recognizers", "image_encoder_fingerprint"):
                if config is not None and not config[name]:
                    del config[name]
        return values

    @property
    def face_encoder_ids(self) -> list[str]:
        """The face recognizers whose embeddings its mixers take; none where any analyzer will do."""
        configs = [self, *([] if self.ffrnet_config is None else [self.ffrnet_config])]
        return list(dict.fromkeys(config.face_encoder_id for config in configs if config.face_embed_dim is not None))

    @property
    def trained_with_face_encoder_ids(self) -> list[str]:
        """The face recognizers that took part in its training, by their embeddings or by an identity loss."""
        of_ffrnet = [] if self.ffrnet_config is None else self.ffrnet_config.identity_loss_recognizers
        return list(dict.fromkeys([*self.face_encoder_ids, *self.identity_loss_recognizers, *of_ffrnet]))

    @property
    def shares_image_encoder(self) -> bool:
        """Whether an FFRNet from another adapter looks at the features of the same image encoder."""
        of_ffrnet = self.ffrnet_config
        return of_ffrnet is not None and of_ffrnet.image_encoder_id == self.image_encoder_id

    @property
    def image_encoder_ids(self) -> list[str]:
        """The image encoders whose features its mixers take."""
        ids = [self.image_encoder_id, None if self.ffrnet_config is None else self.ffrnet_config.image_encoder_id]
        return list(dict.fromkeys(name for name in ids if name is not None))

    @property
    def image_features_id(self) -> str | None:
        """What [`FaceIdentity.image_encoder_id`] is for the image features that its mixer takes."""
        if self.image_encoder_id is None:
            return None
        in_folder = self.image_encoder_id in (IMAGE_ENCODER_FOLDER, FFRNET_IMAGE_ENCODER_FOLDER)
        which = f"@{self.image_encoder_fingerprint}" if in_folder and self.image_encoder_fingerprint else ""
        return f"{self.image_encoder_id}{which}{'' if self.image_crop == 'head' else f'#{self.image_crop}'}"

    @property
    def scales(self) -> dict[str, float]:
        """The scales that hold until others are set."""
        return {**DEFAULT_SCALES, **{str(name): scale for name, scale in self.recommended_scales.items()}}

    def replace(self, **values: Any) -> FaceSnapConfig:
        return replace(self, **values)


def check_parts(parts: Any, source: str = "parts") -> None:
    """Raises [`AdapterError`] unless `parts` are names of [`PARTS`] with which an adapter can work."""
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        raise AdapterError(f"{source} must be a list of names, got {parts!r}")
    unknown = [part for part in parts if not isinstance(part, str) or part not in PARTS]
    if unknown:
        raise AdapterError(f"{source} has unknown parts {unknown}; known are {list(PARTS)}")
    if not set(parts) & {"identity_attention", "ffrnet"}:
        raise AdapterError(f"{source} are {list(parts)}, which change no image; add identity_attention or ffrnet")
    if "mixer" not in parts:
        raise AdapterError(f"{source} are {list(parts)}; add mixer, which makes the identity tokens for the others")
