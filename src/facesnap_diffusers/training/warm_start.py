"""A fresh adapter that starts from one of another kind: InstantID, IP-Adapter FaceID and its variants."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
import torch.nn.functional as F
from accelerate import PartialState
from diffusers import ControlNetModel, UNet2DConditionModel
from diffusers.optimization import get_scheduler
from tqdm.auto import trange

from .._upstream import saved_class_name
from ..adapter.config import IMAGE_ENCODER_FOLDER, PARTS, FaceSnapConfig
from ..adapter.folder import ADAPTER_COMPONENTS, AdapterSource, read_adapter, save_adapter_folder
from ..adapter.hub import resolve_adapter_folder
from ..adapter.public import find_public_adapter
from ..adapter.weights import read_json
from ..base_models import empty_unet, family_of, unet_without_weights
from ..conditioner import FaceConditioner
from ..data.folder_lock import FolderLock
from ..data.shards import PreparedFaces, read_settings
from ..errors import AdapterError, InputError, one_line
from ..files import atomic_folder
from ..interop.loading import is_third_party, load_third_party
from ..models.ffrnet import FFRNet, RankLoss
from ..models.mixer import FacialAttributeMixer
from ..nano.naming import resolve_nano
from ..settings import dump_settings
from .health import kept_random_state
from .shard_check import check_shards
from .training_config import TrainingConfig


START_FOLDER = "start"
_SETTINGS = "warm_start.json"

_BATCH = 64
_FACES, _PICTURES = 16_384, 2048  # of the training photos
_LEARNING_RATE, _RIDGE = 1e-3, 1e-2
_SET_ASIDE = 256  # at most so many photos, or a tenth of all, say how well the tokens are learned


def stored_start(config: TrainingConfig) -> Path | None:
    """The folder of the adapter that a run with these settings has started from before; `None`: there is none."""
    folder = Path(config.output_dir) / START_FOLDER
    try:
        values = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        return folder if values["settings"] == _settings(config) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def start_config(config: TrainingConfig, fresh: FaceSnapConfig) -> FaceSnapConfig:
    r"""
    What the adapter of a run with `adapter.warm_start` is made for. Reads the other adapter, but neither its ControlNet nor
    the base model.

    Args:
        config ([`TrainingConfig`]): Of the run.
        fresh ([`FaceSnapConfig`]): What it would be made for without the other adapter.

    Raises:
        InputError: The shards have embeddings of another face encoder than the other adapter's, the other adapter takes no
            face embedding or is FaceSnap's own, or the base model could not be found.
        AdapterError: The other adapter could not be read, or does not fit the base model.
    """
    folder = stored_start(config)
    if folder is not None:
        return FaceSnapConfig.load(folder)
    name, file = str(config.adapter.warm_start), config.adapter.warm_start_file
    if is_third_party(name, file):
        unet = _unet_without_weights(config)
        _check_face_encoder(config, unet)
        other, _ = load_third_party(name, file, unet, ["mixer", "identity_attention"])
    else:
        source = resolve_adapter_folder(name)
        other = FaceSnapConfig.load(source)
        if saved_class_name(read_json(source / "mixer/config.json")) == FacialAttributeMixer.__name__:
            raise InputError(f"adapter.warm_start {name} is a FaceSnap adapter; continue it with adapter.start_from")
        if other.image_encoder_id == IMAGE_ENCODER_FOLDER:
            other = other.replace(image_encoder_id=str(source / IMAGE_ENCODER_FOLDER))
    if other.face_embed_dim is None or other.ffrnet_config is not None:
        what = "takes no face embedding" if other.face_embed_dim is None else "combines two adapters"
        raise InputError(f"adapter.warm_start {name} {what}; name an InstantID or an IP-Adapter FaceID")
    values: dict[str, Any] = {
        key: getattr(other, key) for key in ("face_encoder_id", "face_embed_dim", "normalized_embeds", "num_tokens")
    }
    if other.image_encoder_id is not None:
        values |= {"image_encoder_id": other.image_encoder_id, "image_crop": other.image_crop}
    return fresh.replace(**values, license=fresh.license or other.license)


def prepare_start(pipeline: Any, config: TrainingConfig, adapter: FaceSnapConfig, encoder: Mapping[str, Any]) -> Path:
    r"""
    The adapter that a run with `adapter.warm_start` starts from. The main process makes it once, by the seed, and keeps it
    in `output_dir/start`; the others wait.

    * Identity attention is the other adapter's, with its LoRA where it has one.
    * FFRNet is its ControlNet where it has one, see [`ffrnet_of`], or else a copy of the UNet's encoder.
    * The mixer is a fresh [`FacialAttributeMixer`] that learns to say what the other one says of the training photos; see
      [`imitate`]. It has a `face_shortcut` unless `adapter.mixer` says otherwise.

    Args:
        pipeline (`FaceSnapPipeline` or `FaceSnapXLPipeline`): The base model; an adapter that it has is replaced.
        config ([`TrainingConfig`]): Of the run.
        adapter ([`FaceSnapConfig`]): As [`start_config`] gives it.
        encoder (`dict`): `image_encoder` and `image_processor`, where they are loaded already.

    Returns:
        `Path`: A FaceSnap adapter's folder, in float32 but for what is copied from the UNet.

    Raises:
        AdapterError: The other adapter could not be read or does not fit the base model, or the folder cannot be written.
        InputError: Sizes of the mixer are wrong, a photo is damaged, or another process writes into `output_dir`.
    """
    state, output = PartialState(), Path(config.output_dir)
    if state.is_main_process and stored_start(config) is None:
        output.mkdir(parents=True, exist_ok=True)
        with FolderLock(output), kept_random_state():
            torch.manual_seed(config.seed)
            _make_start(pipeline, config, adapter, encoder, state.device)
    state.wait_for_everyone()
    return output / START_FOLDER


def imitate(
    student: FaceConditioner, teacher: FaceConditioner, faces: PreparedFaces, steps: int, seed: int = 0
) -> dict[str, float]:
    r"""
    Teaches the student's fresh mixer to give the tokens that the teacher's gives: its shortcut, where it has one, by ridge
    regression, then all of it by the mean squared error. Faces and pictures of the photos are put together at random, so
    that one does not stand for the other; one sample of each batch has the unconditional tokens.

    Args:
        student ([`FaceConditioner`]), teacher ([`FaceConditioner`]): Of the same face encoder and, where both take image
            features, the same image encoder. They compute on the student's device.
        faces ([`PreparedFaces`]): The photos, of which up to 16,384 faces and 2,048 pictures are read.
        steps (`int`): Of 64 samples.
        seed (`int`): Of the choice of photos and their order.

    Returns:
        `dict[str, float]`: Of photos set aside, `cosine` between the two mixers' tokens, and `unexplained`, the share of
        the variance of the teacher's tokens from face to face that the student's do not have; both also `_before` training.
        Nothing where there is only one photo.
    """
    mixer, device = student.mixer, student.device or student.mixer.device
    random = np.random.default_rng(seed)
    photos = random.permutation(len(faces))[:_FACES].tolist()
    aside = photos[: min(_SET_ASIDE, -(-len(photos) // 10), len(photos) - 1)]
    embeds, states = _references(faces, photos[len(aside) :], student, device)

    def tokens(
        embeds: torch.Tensor, states: torch.Tensor | None, unconditional: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The student's and the teacher's, `(batch, num_tokens, cross_attention_dim)`."""
        with torch.no_grad():
            wanted = teacher.mix(embeds, states, unconditional)
        return student.mix(embeds, states, unconditional), wanted

    @torch.no_grad()
    def measure(suffix: str = "") -> dict[str, float]:
        if not aside:
            return {}
        pairs = []
        for start in range(0, len(aside), _BATCH):
            some, shown = (None if x is None else x[start : start + _BATCH] for x in held_out)
            assert some is not None
            pairs.append(tokens(some, shown, torch.zeros(len(some), dtype=torch.bool, device=device)))
        own, wanted = (torch.cat(part) for part in zip(*pairs, strict=True))
        spread = (wanted - wanted.mean(0)).square().sum().clamp(min=1e-12)
        return {
            f"cosine{suffix}": F.cosine_similarity(own, wanted, dim=-1).mean().item(),
            f"unexplained{suffix}": ((own - wanted).square().sum() / spread).item(),
        }

    held_out = _references(faces, aside, student, device) if aside else (embeds, states)

    def sample() -> tuple[torch.Tensor, torch.Tensor | None]:
        people = torch.from_numpy(random.integers(len(embeds), size=_BATCH)).to(device)
        if states is None:
            return embeds[people], None
        return embeds[people], states[torch.from_numpy(random.integers(len(states), size=_BATCH)).to(device)]

    before = measure("_before")
    _spread_faces(mixer, embeds)
    _fit_output(mixer, teacher, embeds, sample)
    mixer.requires_grad_(True)
    optimizer = torch.optim.AdamW(mixer.parameters(), _LEARNING_RATE, weight_decay=0.0)
    schedule = get_scheduler("cosine", optimizer, num_warmup_steps=steps // 20, num_training_steps=steps)
    unconditional = torch.arange(_BATCH, device=device) == 0
    for _ in trange(steps, desc="warm start", unit="step"):
        loss = F.mse_loss(*tokens(*sample(), unconditional))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(mixer.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    mixer.requires_grad_(False)
    return {**before, **measure()}


def ffrnet_of(
    controlnet: ControlNetModel, unet: UNet2DConditionModel, rank: int | None, redrawn: bool
) -> tuple[FFRNet, RankLoss | None]:
    r"""
    FFRNet with the weights of another adapter's ControlNet.

    Args:
        controlnet ([`ControlNetModel`]): InstantID's IdentityNet, or an FFRNet.
        unet (`UNet2DConditionModel`): The base model's.
        rank (`int`, *optional*): Makes a small one; see [`FFRNet.from_controlnet`]. A full one by default.
        redrawn (`bool`): Whether its picture will be drawn in another way. What its dots mean then has to be learned anew,
            and what they meant must not mislead: the last layer of the picture's embedding loses its weights, and gives
            everywhere what it gave for black. So FFRNet starts as the ControlNet is where nothing is drawn; the layers
            before keep what they see of colored dots.

    Returns:
        FFRNet, and what a small one has lost.
    """
    loss = None
    if isinstance(controlnet, FFRNet) and controlnet.config.rank is not None:
        controlnet.bind(unet)
        controlnet = controlnet.to_full()
    if rank is not None:
        ffrnet, loss = FFRNet.from_controlnet(controlnet, unet, rank)
    elif isinstance(controlnet, FFRNet):
        ffrnet = controlnet
    else:
        ffrnet = FFRNet.from_config(controlnet.config, pooled_text=True)
        ffrnet.load_state_dict(controlnet.state_dict())
    if redrawn:
        embedding = ffrnet.controlnet_cond_embedding
        with torch.no_grad():
            black = embedding(torch.zeros(1, 3, 256, 256, dtype=ffrnet.dtype, device=ffrnet.device))
            embedding.conv_out.bias.copy_(black[0, :, black.shape[2] // 2, black.shape[3] // 2])  # far from the edges
            embedding.conv_out.weight.zero_()
    return ffrnet, loss


def _make_start(
    pipeline: Any, config: TrainingConfig, adapter: FaceSnapConfig, encoder: Mapping[str, Any], device: torch.device
) -> None:
    settings = config.adapter
    name, file = str(settings.warm_start), settings.warm_start_file
    # InstantID's ControlNet is large: where there will be no FFRNet it is not loaded
    wanted = ["mixer", "identity_attention"] if "ffrnet" not in adapter.parts and is_third_party(name, file) else None
    source = AdapterSource(name, weight_name=file, parts=wanted, dtype=torch.float32)
    other, modules = read_adapter(source, pipeline.unet)
    if "face_image_encoder" in modules:
        encoder = {
            "image_encoder": modules["face_image_encoder"],
            "image_processor": modules["face_image_processor"],
        }
    from_unet = ["ffrnet"] if "ffrnet" in adapter.parts and "ffrnet" not in modules else []
    pipeline.init_facesnap_adapter(
        adapter.replace(parts=["mixer", "identity_attention", *from_unet]),
        mixer={"face_shortcut": True, **settings.mixer},
        ffrnet_rank=settings.ffrnet_rank,
        **encoder,
    )
    student = dataclasses.replace(pipeline.face_conditioner("adapter.warm_start"), device=device)
    pipeline.mixer.to(device)
    if pipeline.mixer.dtype != torch.float32:
        pipeline.mixer.to(torch.float32)
    teacher = dataclasses.replace(student, mixer=modules["mixer"].to(device).eval().requires_grad_(False))
    image_encoder = pipeline.face_image_encoder
    if image_encoder is not None:
        image_encoder.to(device)
        for folder in config.data.shards:
            check_shards(adapter, read_settings(folder), folder, image_size=image_encoder.config.image_size)
    faces = PreparedFaces(config.data.shards, "train")
    measured = imitate(student, teacher, faces, settings.warm_start_steps, config.seed)
    for module in (pipeline.mixer, image_encoder):
        if module is not None:
            module.to(pipeline.unet.device)
    made = {component: getattr(pipeline, component) for component in ADAPTER_COMPONENTS}
    if "identity_attention" in modules:
        made["identity_attention"] = modules["identity_attention"]
    if "ffrnet" in adapter.parts and "ffrnet" in modules:
        redrawn = other.landmark_style != adapter.landmark_style
        made["ffrnet"], lost = ffrnet_of(modules["ffrnet"], pipeline.unet, settings.ffrnet_rank, redrawn)
        measured |= {} if lost is None else {"ffrnet_lost": lost.total}
    output = Path(config.output_dir)
    with open(output / "log.txt", "a", encoding="utf-8") as log:
        log.write(f"warm start: {', '.join(f'{key} {value:.5g}' for key, value in measured.items())}\n")
    with atomic_folder(output / START_FOLDER) as temporary:
        parts = [part for part in PARTS if part in (*adapter.parts, "landmark_predictor")]
        made_for = adapter.replace(parts=parts, base_family=family_of(pipeline.unet))
        save_adapter_folder(temporary, made_for, made, START_FOLDER)
        values = {"settings": _settings(config), "measured": measured}
        (temporary / _SETTINGS).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def _references(
    faces: PreparedFaces, photos: list[int], conditioner: FaceConditioner, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Of photos by their numbers: the face embeddings `(photos, dim)` and, of the first `_PICTURES`, the image encoder's hidden
    states `(pictures, sequence, width)` in half precision, where there is an image encoder.
    """
    encoder, processor = conditioner.image_encoder, conditioner.image_processor
    embeds, pixels, states = [], [], []
    for place, number in enumerate(photos):
        face = faces[number]
        embeds.append(torch.from_numpy(face.embedding))
        if encoder is None or processor is None or place >= _PICTURES:
            continue
        try:
            crop = PIL.Image.open(io.BytesIO(face.clip_crop)).convert("RGB")
        except Exception as error:  # of Pillow, many kinds for damaged bytes
            raise faces.damaged(number, error) from error
        crop = crop.resize((encoder.config.image_size,) * 2, PIL.Image.Resampling.LANCZOS)
        pixels.append(processor(crop, return_tensors="pt").pixel_values)
        if len(pixels) == _BATCH or place + 1 in (_PICTURES, len(photos)):
            encoded = conditioner.image_states(torch.cat(pixels))
            assert encoded is not None
            states.append(encoded.half())
            pixels = []
    return torch.stack(embeds).to(device), torch.cat(states) if states else None


@torch.no_grad()
def _spread_faces(mixer: FacialAttributeMixer, embeds: torch.Tensor) -> None:
    """What a fresh mixer sees of embeddings `(photos, dim)` is made to vary by one around zero, whatever all have in common."""
    projected = mixer.face_proj(embeds)
    deviation = (projected - projected.mean(0)).square().mean().sqrt()
    if deviation > 1e-6:  # of a single photo there is none
        mixer.face_proj.weight /= deviation
    mixer.face_proj.bias.copy_(-(mixer.face_proj.weight @ embeds.mean(0)))


@torch.no_grad()
def _fit_output(
    mixer: FacialAttributeMixer,
    teacher: FaceConditioner,
    embeds: torch.Tensor,
    sample: Callable[[], tuple[torch.Tensor, torch.Tensor | None]],
) -> None:
    """
    What needs no training: the scale of each channel, the unconditional tokens, and, where the mixer has a shortcut, the
    best linear map from its face tokens to the teacher's tokens, beside which the rest of the mixer starts silent.
    """
    nobody = torch.ones(_BATCH, dtype=torch.bool, device=embeds.device)
    some, shown = sample()
    tokens, unconditional = teacher.mix(some, shown, ~nobody), teacher.mix(some, shown, nobody)[0]
    weight: torch.Tensor
    bias: torch.Tensor
    try:
        norm = teacher.mixer.output_norm
        weight, bias = norm.weight, norm.bias
    except AdapterError:  # it does not end in one
        weight, bias = tokens.std(dim=(0, 1)), tokens.mean(dim=(0, 1))
    mixer.norm_out.weight.copy_(weight)
    mixer.norm_out.bias.copy_(bias)
    least = 0.01 * weight.abs().mean()
    weight = torch.where(weight.abs() < least, least, weight)
    mixer.unconditional_tokens.copy_((unconditional - bias) / weight)
    if not mixer.config.face_shortcut:
        return
    size = mixer.shortcut.in_features + 1
    squares = torch.zeros(size, size, device=embeds.device)
    products = torch.zeros(size, mixer.shortcut.out_features, device=embeds.device)
    for start in range(0, len(embeds), _BATCH):
        some = embeds[start : start + _BATCH]
        inputs = F.pad(mixer._face_tokens(some).flatten(1), (0, 1), value=1.0)  # with the bias
        _, shown = sample()
        wanted = teacher.mix(some, None if shown is None else shown[: len(some)], ~nobody[: len(some)])
        squares += inputs.mT @ inputs
        products += inputs.mT @ ((wanted - bias) / weight).flatten(1)
    ridge = _RIDGE * squares.diagonal()[:-1].mean() * torch.ones(size, device=embeds.device)
    ridge[-1] = 0
    fit = torch.linalg.solve(squares + ridge.diag(), products)
    mixer.shortcut.weight.copy_(fit[:-1].mT)
    mixer.shortcut.bias.copy_(fit[-1])
    for parameter in mixer.proj_out.parameters():
        parameter.zero_()


def _check_face_encoder(config: TrainingConfig, unet: UNet2DConditionModel) -> None:
    """Refuses shards of another face encoder than that of a known public adapter before anything is downloaded."""
    public = find_public_adapter(config.adapter.warm_start, config.adapter.warm_start_file, unet)
    if public is None or public.face_encoder_id is None:
        return
    for folder in (*config.data.shards, *config.data.validation):
        settings = read_settings(folder)
        known = FaceSnapConfig(
            face_encoder_id=public.face_encoder_id, image_encoder_id=None, normalized_embeds=settings.normalized_embeds
        )
        check_shards(known, settings, folder)


def _unet_without_weights(config: TrainingConfig) -> UNet2DConditionModel:
    model = resolve_nano(config.base.model, "base")
    if model.endswith(".safetensors"):  # says nothing of its sizes; where they are others, loading the adapter says so
        return empty_unet({"sd": "sd1"}.get(config.base.family, config.base.family))
    try:
        return unet_without_weights(model)
    except (OSError, ValueError) as error:
        raise InputError(
            f"base.model {config.base.model!r} could not be loaded ({one_line(error)}); correct it"
        ) from error


def _settings(config: TrainingConfig) -> dict[str, Any]:
    """What a start depends on."""
    adapter = {name: value for name, value in dump_settings(config.adapter).items() if name != "train"}
    base = {"base": config.base.model, "revision": config.base.revision, "variant": config.base.variant}
    return {"adapter": adapter, **base, "shards": config.data.shards, "seed": config.seed}
