"""Portraits by plain values: one image from a request, the record that makes it again, and tables of thousands."""

from __future__ import annotations

import csv
import functools
import hashlib
import io
import json
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import PIL.Image
import PIL.PngImagePlugin
from pydantic import Field

from .errors import (
    FaceSnapError,
    InputError,
    MissingDependencyError,
    PhotoError,
    expanded,
    one_line,
    shown,
    suggestion,
)
from .faces.expression import Expression
from .faces.photo import load_photo
from .faces.placing import check_face_box
from .faces.pose import HeadPose
from .files import atomic_file
from .preflight import make_output_folder
from .settings import dump_settings, parse_settings, strict_dataclass


if TYPE_CHECKING:
    import numpy as np
    import torch

    from .identity import FaceIdentity


#: The name of the PNG text chunk that holds the record of an image, as JSON.
RECORD_KEY = "facesnap"

#: The nano model draws in four steps without guidance; other base models get the values that most take.
NANO_STEPS, STEPS = 4, 30

#: The sides, in pixels, that the nano model draws faces with; smaller ones are blurred, larger ones stretched.
NANO_SIDES = (96, 144)

_PACKAGES = ("facesnap-diffusers", "diffusers", "torch", "transformers")
_KEPT_IDENTITIES = 32

#: In bytes. With `.png`, and the temporary name that it is written under, it stays below the 255 of most file systems.
_LONGEST_NAME = 200

#: In characters, for a cell of a CSV file: the default limit of Python's csv module.
_LONGEST_CELL = 131_072

Scale = Annotated[float, Field(ge=0)]
Size = Annotated[int, Field(ge=8, le=8192, multiple_of=8)]  # latents have an eighth of the image's sides


@strict_dataclass(frozen=True)
class ModelSettings:
    r"""
    What makes the images.

    Attributes:
        base (`str`, *optional*): Base model: Hub repo, folder or single file of any Stable Diffusion 1.x, 2.x or XL. The
            nano model of this package by default.
        adapter (`str`, *optional*): Adapter: Hub repo, folder or file; the base model's default one if left out.
        weight_name (`str`, *optional*): File of another kind of adapter in that repo or folder.
        landmarks_from (`str`, *optional*): Another adapter, whose FFRNet is combined with the first one's identity attention.
        identity_scale (`float`, *optional*), landmark_scale (`float`, *optional*): As in `set_facesnap_scale`; the
            adapter's recommended ones by default.
        dtype (`str`): `"float32"`, `"float16"` or `"bfloat16"`.
        device (`str`): E.g. `"cpu"` or `"cuda"`.
        offload (`str`): `"none"`, `"model"` or `"sequential"`: which weights leave the device while they are not needed.
    """

    base: str | None = None
    adapter: str | None = None
    weight_name: str | None = None
    landmarks_from: str | None = None
    identity_scale: Scale | None = None
    landmark_scale: Scale | None = None
    dtype: Literal["float32", "float16", "bfloat16"] = "float32"
    device: str = "cpu"
    offload: Literal["none", "model", "sequential"] = "none"

    @property
    def is_nano(self) -> bool:
        """Whether this is the nano model with its own adapter, which ships with the package."""
        return self.base is None and self.adapter is None and self.landmarks_from is None


@strict_dataclass(frozen=True)
class PortraitRequest:
    r"""
    One image.

    Attributes:
        prompt (`str`): The prompt.
        photos (`list[str]`): Photos of one person: files or URLs.
        identity (`str`, *optional*): A file of [`FaceIdentity.save`], in place of photos.
        negative_prompt (`str`, *optional*): What not to show.
        pose_image (`str`, *optional*): A photo whose pose, expression and framing the image takes.
        yaw, pitch, roll (`float`, *optional*): Head pose in degrees; where one is given, the others are 0.
        expression (`str` or `dict`, *optional*): A preset such as `"smile"`, or strengths by name, also as text:
            `"jawOpen=0.4,mouthSmileLeft=0.8"`.
        face_box (`list[float]`, *optional*): Left, top, right, bottom as shares of the image. On the nano model by default
            where its portraits have the face; else as in the photo or pose image.
        face_index (`int`, *optional*): Which face to take where photos show several; the largest by default.
        seed (`int`): Seed of the noise.
        steps (`int`, *optional*): Denoising steps.
        guidance_scale (`float`, *optional*): Classifier-free guidance.
        schedule (`str`, *optional*): `"exact"` or `"fast"`, as in `set_facesnap_schedule`; `"exact"` by default.
        width (`int`, *optional*), height (`int`, *optional*): Size of the image in pixels, multiples of 8; the base model's
            by default.
    """

    prompt: str
    photos: list[str] = field(default_factory=list)
    identity: str | None = None
    negative_prompt: str | None = None
    pose_image: str | None = None
    yaw: float | None = None
    pitch: float | None = None
    roll: float | None = None
    expression: str | dict[str, float] | None = None
    face_box: Annotated[list[float], Field(min_length=4, max_length=4)] | None = None
    face_index: Annotated[int, Field(ge=0)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    steps: Annotated[int, Field(ge=1, le=10_000)] | None = None
    guidance_scale: Scale | None = None
    schedule: Literal["exact", "fast"] | None = None
    width: Size | None = None
    height: Size | None = None

    def __post_init__(self) -> None:
        if not self.prompt.strip():
            raise InputError("prompt is empty; say what the image shows")
        if bool(self.photos) == (self.identity is not None):
            raise InputError("give photos or an identity, one of the two")
        _pose(self)
        if self.expression is not None:
            Expression.of(self.expression)
        if self.face_box is not None:
            check_face_box(self.face_box)


class PortraitMaker:
    """Makes images of requests with one model, which it loads at the first. The same in this process and in a worker."""

    def __init__(self, settings: ModelSettings, progress: bool = False):
        self.settings = settings
        self.progress = progress
        self._pipe: Any = None
        self._identities: dict[str, FaceIdentity] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_pipe": None, "_identities": {}}

    def load(self) -> Any:
        """The pipeline, loaded once; raises [`InputError`] or [`AdapterError`] where it cannot be."""
        if self._pipe is None:
            self._pipe = load_pipeline(self.settings)
            self._pipe.set_progress_bar_config(disable=not self.progress, leave=False)
        return self._pipe

    def __call__(self, request: PortraitRequest, files: Mapping[str, str] | None = None) -> bytes:
        """
        The image of a request as a PNG file with its record. `files` says where a photo, pose image or identity is found
        now, if not under the name that the request has. Raises [`InputError`] and [`AdapterError`] as the pipelines do;
        for what is wrong with the request or its files before the model is loaded.
        """
        files = files or {}
        if self.settings.base is None:
            _check_nano_size(request)
        names = [*request.photos, request.identity, request.pose_image]
        digests = {name: digest for name in names if name and (digest := file_digest(files.get(name, name)))}
        options: dict[str, Any] = {
            "negative_prompt": request.negative_prompt,
            "pose_image": None
            if request.pose_image is None
            else load_photo(files.get(request.pose_image, request.pose_image), "pose_image"),
            "expression": request.expression,
            "num_inference_steps": request.steps or (NANO_STEPS if self.settings.base is None else STEPS),
            "guidance_scale": 1.0
            if request.guidance_scale is None and self.settings.base is None
            else request.guidance_scale,
            "facesnap_schedule": request.schedule,
            "width": request.width,
            "height": request.height,
            "pose": _pose(request),
        }
        identity = self._identity(request, files)
        pipe = self.load()
        import torch

        options["face_box"] = self._face_box(request, identity)
        image = pipe(
            request.prompt,
            identity=identity,
            generator=torch.Generator().manual_seed(request.seed),
            **{name: value for name, value in options.items() if value is not None},
        ).images[0]
        record = {
            "request": dump_settings(request),
            "model": dump_settings(self.settings),
            "scales": pipe.facesnap_scale,
            "files": digests,
            "versions": {name: version(name) for name in _PACKAGES},
        }
        return as_png(image, record)

    def _face_box(self, request: PortraitRequest, identity: FaceIdentity) -> Sequence[float] | None:
        """Where the face goes: the nano model knows portraits only, and photos seldom have their frame."""
        if request.face_box is not None or self.settings.base is not None or request.pose_image is not None:
            return request.face_box
        if self.load().ffrnet is None:
            return None
        from .nano.portrait_box import portrait_box

        pose = _pose(request)
        if pose is None and identity.landmarks is not None:
            predictor = self.load().landmark_predictor
            own = predictor.encode(identity.landmarks[None].to(predictor.device, predictor.dtype))
            pose = HeadPose(*own.rotation[0].clamp(-90, 90).tolist())
        left, top, right, bottom = portrait_box(pose or HeadPose())
        return left, top, right, bottom

    def _identity(self, request: PortraitRequest, files: Mapping[str, str]) -> FaceIdentity:
        if request.identity is not None:
            return _load_identity(files.get(request.identity, request.identity))
        paths = [files.get(name, name) for name in request.photos]
        key = json.dumps([[file_digest(path) or path for path in paths], request.face_index])
        if key not in self._identities:
            while len(self._identities) >= _KEPT_IDENTITIES:
                del self._identities[next(iter(self._identities))]
            photos = [_read_photo(path) for path in paths]
            pipe = self.load()
            try:
                identity = pipe.encode_face(photos, face_index=request.face_index)
                if self.settings.is_nano:
                    from .nano.photos import as_rendered

                    identity = as_rendered(identity)
                self._identities[key] = identity
            except InputError as error:  # with the name that the user typed
                message = str(error)
                for i, path in enumerate(paths):
                    message = message.replace("face_image" if len(paths) == 1 else f"face_image[{i}]", path)
                raise type(error)(message) from None
        return self._identities[key]


def _check_nano_size(request: PortraitRequest) -> None:
    """Raises [`InputError`] for a size at which the nano model draws no sound faces."""
    low, high = NANO_SIDES
    for name, side in (("width", request.width), ("height", request.height)):
        if side is not None and not low <= side <= high:
            raise InputError(
                f"{name} is {side}; the small model in this package draws {low} to {high} pixels: leave it out, or name a"
                " base model"
            )


def _load_identity(path: str) -> FaceIdentity:
    from .identity import FaceIdentity

    try:
        return FaceIdentity.load(path)
    except InputError as error:
        raise InputError(f"identity {str(error).removeprefix('path ')}") from None


def _read_photo(path: str) -> np.ndarray:
    """The pixels of a photo; errors name it once, and as the user typed it."""
    try:
        return load_photo(path, path)
    except PhotoError as error:
        message = str(error).removeprefix(f"{path}: ")
        raise PhotoError(message if path in message else str(error)) from None


def _pose(request: PortraitRequest) -> HeadPose | None:
    angles = {"yaw": request.yaw, "pitch": request.pitch, "roll": request.roll}
    given = {name: angle for name, angle in angles.items() if angle is not None}
    return HeadPose(**given) if given else None


def load_pipeline(settings: ModelSettings) -> Any:
    """The pipeline of a base model with its adapter; raises [`InputError`] or [`AdapterError`] where there is none."""
    import torch

    from .preflight import check_adapter, check_device

    check_device(settings.device)
    for setting in ("adapter", "landmarks_from"):
        check_adapter(setting, getattr(settings, setting))
    dtype = getattr(torch, settings.dtype)
    if settings.base is None:
        from .nano.model import load_nano_pipeline

        pipe = load_nano_pipeline(dtype=dtype)
    else:
        pipe = _load_base(settings.base, dtype)
    if not settings.is_nano:
        pipe.load_facesnap_adapter(
            settings.adapter, weight_name=settings.weight_name, landmarks_from=settings.landmarks_from
        )
    pipe.set_facesnap_scale(settings.identity_scale, settings.landmark_scale)
    if settings.offload == "none":
        pipe.to(settings.device)
    else:
        try:
            if settings.offload == "model":
                pipe.enable_model_cpu_offload(device=settings.device)
            else:
                pipe.enable_sequential_cpu_offload(device=settings.device)
        except ImportError as error:
            raise MissingDependencyError(
                'offloading needs accelerate: pip install "facesnap-diffusers[offload]"'
            ) from error
    return pipe


def _load_base(base: str, dtype: torch.dtype) -> Any:
    from .preflight import base_folder

    folder = base_folder(base)  # before what takes seconds to import
    from diffusers import DiffusionPipeline

    from ._upstream import saved_class_name
    from .adapter.hub import why_not_from_hub
    from .pipelines.facesnap import FaceSnapPipeline
    from .pipelines.facesnap_xl import FaceSnapXLPipeline

    base = str(expanded(base))
    try:
        if Path(base).is_file():
            pipeline_class = FaceSnapXLPipeline if _is_xl_file(Path(base)) else FaceSnapPipeline
            return pipeline_class.from_single_file(base, dtype=dtype)
        config = DiffusionPipeline.load_config(folder)
        if "unet" in config:
            pipeline_class = FaceSnapXLPipeline if "text_encoder_2" in config else FaceSnapPipeline
            return pipeline_class.from_pretrained(base, dtype=dtype)
    except Exception as error:
        raise InputError(
            f"base {base!r} could not be loaded ({why_not_from_hub(error)}); name a Hub repo, folder or file of Stable"
            " Diffusion"
        ) from error
    raise InputError(
        f"base {base!r} is a {saved_class_name(config)}, not a Stable Diffusion model; name one of 1.x, 2.x or XL"
    )


def _is_xl_file(path: Path) -> bool:
    """Whether a single file is of Stable Diffusion XL: it alone has two text encoders under `conditioner`."""
    from safetensors import safe_open

    from .interop.checkpoint import read_tensors

    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as file:
            names = list(file.keys())
    else:
        tensors = read_tensors(path)
        names = list(tensors.get("state_dict", tensors))
    return any(name.startswith("conditioner.embedders.1.") for name in names)


def file_digest(path: str) -> str | None:
    """The SHA-256 of a file's content; `None` for what is not a file, such as a URL."""
    try:
        return hashlib.sha256(Path(path).read_bytes()).hexdigest() if Path(path).is_file() else None
    except OSError as error:
        raise PhotoError(f"{path} cannot be read ({error.strerror}); name another file") from None


def as_png(image: PIL.Image.Image, record: Mapping[str, Any]) -> bytes:
    """An image as a PNG file with its record."""
    text = PIL.PngImagePlugin.PngInfo()
    text.add_itxt(RECORD_KEY, json.dumps(record, sort_keys=True, ensure_ascii=False))
    buffer = io.BytesIO()
    image.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def read_record(path: str | Path) -> dict[str, Any]:
    """The record of an image that [`as_png`] wrote; raises [`InputError`] for other files."""
    try:
        with PIL.Image.open(path) as image:
            record = json.loads(image.info[RECORD_KEY])
    except FileNotFoundError:
        raise InputError(f"there is no file {path}; name an image of facesnap generate") from None
    except PIL.Image.DecompressionBombError as error:
        raise InputError(f"{path} is too large ({one_line(error)}); name an image of facesnap generate") from None
    except (KeyError, TypeError, ValueError, RecursionError, OSError):
        raise InputError(f"{path} has no record of how it was made; name an image of facesnap generate") from None
    if not isinstance(record, dict) or not {"request", "model", "files", "versions"} <= set(record):
        raise InputError(f"{path} has a record of another version; install the facesnap-diffusers that made it")
    for name in ("files", "versions"):
        values = record[name]
        if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
            raise InputError(f"{path} has a damaged record: {name} is {shown(values)}; name another image")
    return record


def from_record(
    record: Mapping[str, Any], photos: list[str] | None = None, pose_image: str | None = None
) -> tuple[ModelSettings, PortraitRequest, dict[str, str]]:
    r"""
    What makes an image again.

    Args:
        record (`dict`): Of the image, as [`read_record`] gives it.
        photos (`list[str]`, *optional*): Where its photos, or its identity, are now, if they were moved.
        pose_image (`str`, *optional*): Where its pose image is now, if that was moved.

    Returns:
        The model, the request, and where its files are, for [`PortraitMaker`].

    Raises:
        InputError: A file is not there, or its content is another one.
    """
    model = parse_settings(ModelSettings, record["model"], "the record of the model")
    request = parse_settings(PortraitRequest, record["request"], "the record of the image")
    files: dict[str, str] = {}
    if photos:
        names = request.photos or [request.identity or ""]
        if len(photos) != len(names):
            raise InputError(f"the image was made of {len(names)} photos, {len(photos)} are given; give as many")
        files = dict(zip(names, photos, strict=True))
    if pose_image is not None:
        if request.pose_image is None:
            raise InputError("the image was made without a pose image; leave out --pose-image")
        files[request.pose_image] = pose_image
    for name, digest in record["files"].items():
        path = files.get(name, name)
        if file_digest(path) is None:
            advice = "say where the pose image is now with --pose-image"
            if name != request.pose_image:
                advice = (
                    f"give the image's {'identity, where it is' if request.identity else 'photos where they are'} now"
                )
            raise InputError(f"{path} is not there any more; {advice}")
        if file_digest(path) != digest:
            raise InputError(f"{path} is not the file that the image was made of; give the one that was")
    return model, request, files


# tables


@dataclass(frozen=True)
class Row:
    """One row of a table: the name of its image, and its request or what is wrong with it."""

    name: str
    request: PortraitRequest | None
    error: str | None = None


def read_table(path: str | Path, defaults: PortraitRequest | Mapping[str, Any]) -> list[Row]:
    r"""
    The rows of a table.

    Args:
        path (`str` or `Path`): `.csv` with a head, or `.jsonl`. Columns are those of [`PortraitRequest`], `photo` for
            one of `photos`, and `name` for that of the image (the number of the row by default). Relative files are
            relative to the table.
        defaults (`dict`): For what a row does not say. Seeds count up from the default one.

    Returns:
        Every row; one that is wrong says so in its `error`, and the others stay as they are. A row whose name cannot be
        used has its number as a name.

    Raises:
        InputError: The table cannot be read, or has a column of another name.
    """
    path = Path(path)
    defaults = dump_settings(defaults) if isinstance(defaults, PortraitRequest) else dict(defaults)
    rows: list[Row] = []
    names: set[str] = set()
    for number, (values, error) in enumerate(_records(path)):
        title = f"row {number + 1}"
        name = str(values.pop("name", None) or f"{number:06d}")
        unusable = f"name {shown(name)} is that of an earlier row" if name in names else _wrong_name(name)
        if unusable:
            error, name = error or f"{unusable}; give another", f"{number:06d}"
        else:
            names.add(name)
        photos = _photos(values)
        if photos or values.get("identity"):
            values["photos"] = photos
        values = {"seed": defaults.get("seed", 0) + number, **values}
        for key in ("photos", "identity", "pose_image"):
            if values.get(key):
                value = values[key]
                values[key] = (
                    [_beside(path, one) for one in value] if isinstance(value, list) else _beside(path, value)
                )
        try:
            if error is not None:
                raise InputError(f"{title}: {error}")
            rows.append(Row(name, parse_settings(PortraitRequest, {**defaults, **values}, title)))
        except InputError as wrong:
            rows.append(Row(name, None, str(wrong)))
    return rows


def _check_columns(path: Path, columns: Iterable[str]) -> None:
    """Raises [`InputError`] for a column that a table cannot have: of a CSV file its head, of a JSONL file its first row."""
    known = [*(setting.name for setting in fields(PortraitRequest)), "photo", "name"]
    for column in columns:
        if column not in known:
            close = suggestion(column, known) or f"; known are {', '.join(known)}"
            raise InputError(f"table {path} has an unknown column {shown(column)}{close}")


def _wrong_name(name: str) -> str | None:
    """Why an image cannot have this name, or `None`."""
    if "/" in name or name.startswith(".") or any(unicodedata.category(sign) in ("Cc", "Cs") for sign in name):
        return f"name {shown(name)} cannot be a file's name"
    if len(name.encode()) > _LONGEST_NAME:
        return f"name {shown(name)} is longer than {_LONGEST_NAME} bytes"
    return None


def _photos(values: dict[str, Any]) -> Any:
    """Takes `photo` and `photos` out of a row, as one list; what is not a list is left to the check of the request."""
    photo, photos = values.pop("photo", None), values.pop("photos", None)
    photos = [] if photos is None else [photos] if isinstance(photos, str) else photos
    return photos if photo is None or not isinstance(photos, list) else [photo, *photos]


def make_table(
    rows: Iterable[Row],
    output: Path,
    maker: PortraitMaker,
    *,
    overwrite: bool = False,
    ray: bool = False,
    workers: int = 1,
) -> Iterator[tuple[Row, str | None]]:
    r"""
    Makes the image of each row that is not there yet, and yields each row with what went wrong, or `None`. Failures are
    recorded in `failures.jsonl`, and do not end it. Killed at any moment and run again, it goes on where it was.

    Args:
        rows (iterable of [`Row`]): The table.
        output (`Path`): Folder of the images. One run at a time works on it.
        maker ([`PortraitMaker`]): Makes them.
        overwrite (`bool`): Replace files of a row's name that are not its image; otherwise such a row fails.
        ray (`bool`): Work on a Ray cluster, each worker with a GPU of its own where the device is one.
        workers (`int`): How many there.

    Raises:
        InputError: The folder cannot be made or written to.
    """
    output = make_output_folder(output)
    for left_over in output.glob(f".*.png.{32 * '?'}.png"):  # of a run that was killed while it wrote
        left_over.unlink(missing_ok=True)
    todo: list[Row] = []
    digest = functools.cache(file_digest)  # many rows have the same photos
    with open(output / "failures.jsonl", "w", encoding="utf-8", errors="backslashreplace") as failures:

        def done(row: Row, png: bytes | None, error: str | None) -> tuple[Row, str | None]:
            if png is not None:
                with atomic_file(output / f"{row.name}.png") as temporary:
                    temporary.write_bytes(png)
            else:
                failures.write(json.dumps({"name": row.name, "error": error}, ensure_ascii=False) + "\n")
                failures.flush()
            return row, error

        for row in rows:
            if row.request is None:
                yield done(row, None, row.error)
                continue
            path = output / f"{row.name}.png"
            if not path.exists():
                todo.append(row)
                continue
            try:
                difference = _difference(path, row.request, maker.settings, digest)
            except InputError as wrong:  # a photo that cannot be read
                yield done(row, None, str(wrong))
                continue
            if difference is None:
                yield row, None
            elif overwrite:
                todo.append(row)
            else:
                yield done(row, None, f"{path.name} is there and {difference}; pass --overwrite to replace it")
        for row, png, error in _with_ray(todo, maker, workers) if ray else (_attempt(maker, row) for row in todo):
            yield done(row, png, error)


def _attempt(maker: PortraitMaker, row: Row) -> tuple[Row, bytes | None, str | None]:
    """The image of one row, or what went wrong: the function of every worker."""
    assert row.request is not None
    maker.load()  # a model that cannot be loaded ends the run
    try:
        return row, maker(row.request), None
    except Exception as error:
        return row, None, str(error) if isinstance(error, FaceSnapError) else one_line(error)


class _RayWorker:
    """One worker of Ray Data."""

    def __init__(self, maker: PortraitMaker):
        self.maker = maker

    def __call__(self, values: dict[str, Any]) -> dict[str, Any]:
        request = parse_settings(PortraitRequest, json.loads(values["request"]), "row")
        _, png, error = _attempt(self.maker, Row(values["name"], request))
        return {"name": values["name"], "png": png or b"", "error": error or ""}


def _with_ray(rows: list[Row], maker: PortraitMaker, workers: int) -> Iterator[tuple[Row, bytes | None, str | None]]:
    """Over the workers of a cluster. Only this process writes."""
    try:
        import ray
    except ImportError as error:
        raise MissingDependencyError('--ray needs ray: pip install "facesnap-diffusers[ray]"') from error
    if not rows:
        return
    by_name = {row.name: row for row in rows}
    items = [{"name": row.name, "request": json.dumps(dump_settings(row.request))} for row in rows]
    data = ray.data.from_items(items, override_num_blocks=min(len(items), 8 * workers))
    gpus = {"num_gpus": 1} if maker.settings.device.startswith("cuda") else {}
    data = data.map(_RayWorker, fn_constructor_args=(maker,), concurrency=workers, **gpus)
    for values in data.iter_rows():
        yield by_name[values["name"]], values["png"] or None, values["error"] or None


def _difference(
    path: Path, request: PortraitRequest, settings: ModelSettings, digest: Callable[[str], str | None]
) -> str | None:
    """In what an image that is there differs from that of a request and a model, or `None`."""
    try:
        record = read_record(path)
    except InputError:
        return "is another image"
    if (record["request"], record["model"]) != (dump_settings(request), dump_settings(settings)):
        return "is another image"
    for name in filter(None, [*request.photos, request.identity, request.pose_image]):
        now = digest(name)
        if now is not None and now != record["files"].get(name):  # what is gone or a URL cannot be compared
            return f"was made of another file than {name} is now"
    return None


def _records(path: Path) -> Iterator[tuple[dict[str, Any], str | None]]:
    """The values of each row, and what is wrong with it. Raises [`InputError`] for what is not a table of ours."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"table {path} cannot be read ({one_line(error)}); name a .csv or .jsonl file") from None
    if path.suffix == ".jsonl":
        is_first = True
        for line in filter(str.strip, text.split("\n")):  # splitlines would split at U+2028 in a prompt, too
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield {}, f"not JSON ({one_line(error)})"
                continue
            if not isinstance(values, dict):
                yield {}, "not a JSON object"
                continue
            if is_first:
                _check_columns(path, values)
            is_first = False
            yield values, None
    elif path.suffix == ".csv":
        lines = _csv_lines(path, text)
        head = lines[0] if lines else []
        columns = list(filter(None, head))  # one without a name may be empty
        _check_columns(path, columns)
        if len(set(columns)) < len(columns):
            twice = next(name for name in columns if columns.count(name) > 1)
            raise InputError(f"table {path} has two columns {shown(twice)}; leave one out")
        for cells in lines[1:]:
            values = {name: _cell(name, value) for name, value in zip(head, cells, strict=False) if value}
            error_of = None
            if len(cells) > len(head):
                error_of = f"{len(cells)} cells, but the head has {len(head)}; put text with a comma in quotes"
            elif max(map(len, cells)) > _LONGEST_CELL:
                error_of = f"a cell is longer than {_LONGEST_CELL:,} characters; shorten it"
            yield values, error_of
    else:
        raise InputError(f"table {path} must end in .csv or .jsonl")


def _csv_lines(path: Path, text: str) -> list[list[str]]:
    """The rows of a CSV file, the head first, without empty ones. Raises [`InputError`] where a quote is not closed."""
    limit = csv.field_size_limit(len(text) + 1)  # a longer cell would end the table
    try:
        return [cells for cells in csv.reader(io.StringIO(text), strict=True) if cells]
    except csv.Error as error:
        raise InputError(
            f"table {path} is not CSV ({one_line(error)}); close each quote, and double those within quotes"
        ) from None
    finally:
        csv.field_size_limit(limit)


#: Columns of a CSV file that are text; all others are read as JSON where they can be.
_TEXT = ("name", "prompt", "negative_prompt", "photo", "identity", "pose_image")


def _cell(name: str, value: Any) -> Any:
    if name in _TEXT:
        return value
    if name == "face_box" and "[" not in value:
        value = f"[{','.join(value.replace(',', ' ').split())}]"
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _beside(table: Path, file: Any) -> Any:
    """A relative file of a table is beside it."""
    if not isinstance(file, str) or "://" in file:
        return file
    return str(table.parent / expanded(file))  # an absolute path stays as it is


def numbered(request: PortraitRequest, number: int) -> list[PortraitRequest]:
    """The same request with as many seeds, from its own upwards."""
    return [replace(request, seed=request.seed + i) for i in range(number)]
