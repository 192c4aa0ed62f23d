"""What an evaluation consists of: the YAML file of `facesnap eval`."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any, Literal

from pydantic import Field

from ..errors import InputError
from ..settings import strict_dataclass
from .methods import make_method
from .sampling import Sampling


@strict_dataclass(frozen=True)
class EvalConfig:
    r"""
    An evaluation. `docs/evaluation.md` has examples.

    Attributes:
        benchmark (`str`): `"unsplash50"`, `"multi_id_bench"` or `"nano"`.
        data (`str`): The folder with its data.
        output (`str`): The folder that everything is written to. Images that are there already are not made again.
        methods (`list`): What makes the images: each a kind, or a dictionary of a `kind` and its settings.
        sampling ([`Sampling`]): Base model, size and steps, for all methods.
        face_encoder_ids (`list[str]`): Recognizers that judge likeness; the first one's faces and points count for all else.
        clip_model_id (`str`, *optional*): Hub repo or folder of the CLIP model, `"none"` for no CLIP metrics; by default
            a ViT-L/14 where the benchmark's table has such metrics.
        diversity (`bool`): Whether to compute LPIPS between the images of a person and prompt.
        real (`str`, *optional*): A folder of real images, for FID and KID.
        real_features (`str`): `"inception"` or `"clip"`: what FID and KID compare.
        seed (`int`): Of the first image.
        limit (`int`, *optional*): At most so many cases, spread evenly.
        batch_size (`int`): Images generated at once. Changes none of them, except by rounding.
        device (`str`): Where models run.
        sheet_rows (`int`): Rows of the contact sheet, 0 for none.
    """

    benchmark: str
    data: str
    output: str
    methods: list[str | dict[str, Any]]
    sampling: Sampling = field(default_factory=Sampling)
    face_encoder_ids: list[str] = field(default_factory=lambda: ["dlib/face_recognition_resnet_model_v1"])
    clip_model_id: str | None = None
    diversity: bool = False
    real: str | None = None
    real_features: Literal["inception", "clip"] = "inception"
    seed: int = 0
    limit: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 1
    device: str = "cpu"
    sheet_rows: Annotated[int, Field(ge=0)] = 8

    def __post_init__(self) -> None:
        if not self.methods:
            raise InputError("methods is empty; name at least one, e.g. facesnap")
        if not self.face_encoder_ids:
            raise InputError("face_encoder_ids is empty; name at least one")
        names = [make_method(method).name for method in self.methods]
        repeated = [name for name in names if names.count(name) > 1]
        if repeated:
            raise InputError(f"two methods are called {repeated[0]!r}; give each a name of its own")
