"""The frozen base model with the adapter that is trained on it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from .._upstream import supports_gradient_checkpointing
from ..adapter.config import CONFIG_NAME, IMAGE_ENCODER_FOLDER, FaceSnapConfig
from ..adapter.hub import resolve_adapter_folder
from ..errors import InputError, one_line
from ..models.image_encoder import default_image_processor
from ..nano.naming import resolve_nano
from .recognizer import recognizer_name
from .training_config import TrainingConfig
from .warm_start import prepare_start, start_config, stored_start
from .weight_storage import store_weights


def load_pipeline(config: TrainingConfig) -> Any:
    """The base model in its dtype, frozen, with the adapter: trained parts in float32, as optimizers need them."""
    from .. import FaceSnapPipeline, FaceSnapXLPipeline

    for module in config.base.imports:
        try:
            import_module(module)
        except ImportError as error:
            raise InputError(
                f"base.imports: {module!r} cannot be imported ({one_line(error)}); correct its name"
            ) from None
    is_xl = config.base.family == "sdxl"
    pipeline_class = FaceSnapXLPipeline if is_xl else FaceSnapPipeline
    dtype = base_dtype(config)
    options: dict[str, Any] = {"dtype": dtype}
    if config.base.vae is not None:
        try:
            options["vae"] = AutoencoderKL.from_pretrained(config.base.vae, dtype=dtype)
        except (OSError, ValueError) as error:
            raise InputError(
                f"base.vae {config.base.vae!r} could not be loaded ({one_line(error)}); correct it"
            ) from error
    if not is_xl:
        options["safety_checker"] = None
    try:
        model = resolve_nano(config.base.model, "base")
        if model.endswith(".safetensors"):
            pipeline = pipeline_class.from_single_file(model, **options)
        else:
            pipeline = pipeline_class.from_pretrained(
                model, revision=config.base.revision, variant=config.base.variant, **options
            )
    except (OSError, ValueError) as error:
        raise InputError(
            f"base.model {config.base.model!r} could not be loaded ({one_line(error)}); correct it"
        ) from error
    if is_xl and config.base.vae is None:
        pipeline.vae.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False).eval()

    start = _start_from(config)
    if config.adapter.warm_start is not None:
        adapter = adapter_config(config)
        assert adapter is not None
        bundles = adapter.image_encoder_id == IMAGE_ENCODER_FOLDER and stored_start(config) is None
        start = str(prepare_start(pipeline, config, adapter, _image_encoder(config) if bundles else {}))
    if start is not None:
        # in float32, for what is trained goes on with the bits that were saved
        pipeline.load_facesnap_adapter(start, dtype=torch.float32)
        for name in ("mixer", "identity_attention", "ffrnet", "face_image_encoder"):
            if getattr(pipeline, name) is not None and name not in config.adapter.train:
                getattr(pipeline, name).to(dtype)
        if pipeline.facesnap_config.ffrnet_config is not None:
            raise InputError(
                f"adapter.start_from {start} combines two adapters; train one of the two, then combine"
                " them with landmarks_from="
            )
    else:
        _start_adapter(pipeline, config)
    missing = [part for part in config.adapter.train if getattr(pipeline, part) is None]
    if missing:
        raise InputError(f"adapter.train has {missing}, which {start} does not contain; leave them out")
    for part in config.adapter.train:
        if getattr(pipeline, part).dtype != torch.float32:
            getattr(pipeline, part).to(torch.float32)
    _note_recognizer(pipeline, config)
    if config.gradient_checkpointing:
        for name in ("unet", "ffrnet", "vae"):
            component = getattr(pipeline, name)
            if component is not None and supports_gradient_checkpointing(component):
                component.enable_gradient_checkpointing()
    if config.base.storage_dtype is not None:
        # last: a fresh adapter has copied from the weights as they were
        store_weights(pipeline.unet, getattr(torch, config.base.storage_dtype))
    if config.base.compile:
        pipeline.unet.compile_repeated_blocks()
    return pipeline


def base_dtype(config: TrainingConfig) -> torch.dtype:
    of_precision = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[config.mixed_precision]
    return of_precision if config.base.dtype is None else getattr(torch, config.base.dtype)


def adapter_config(config: TrainingConfig) -> FaceSnapConfig | None:
    """What the trained adapter is made for, before the base model is loaded. `None`: a checkpoint of another family."""
    adapter = config.adapter
    start = _start_from(config)
    if start is not None:
        folder = resolve_adapter_folder(start)
        return FaceSnapConfig.load(folder) if (folder / CONFIG_NAME).is_file() else None
    is_public = "/" in config.base.model and not Path(config.base.model).exists()
    fresh = FaceSnapConfig(
        face_encoder_id=adapter.face_encoder_id,
        face_embed_dim=adapter.face_embed_dim,
        image_encoder_id=IMAGE_ENCODER_FOLDER if adapter.bundle_image_encoder else adapter.image_encoder_id,
        normalized_embeds=adapter.normalized_embeds,
        image_crop=adapter.image_crop,
        landmark_style=adapter.landmark_style,
        num_tokens=adapter.num_tokens,
        parts=list(adapter.parts),
        base_model=config.base.model if is_public else None,
        license=adapter.license,
    )
    return fresh if adapter.warm_start is None else start_config(config, fresh)


def local_image_size(config: TrainingConfig, adapter: FaceSnapConfig) -> int | None:
    """
    Side of the pictures that the adapter's image encoder takes, in pixels, before it is loaded. `None`: there is no image
    encoder, or not in a local folder.
    """
    source = adapter.image_encoder_id
    start, folder = _start_from(config), None
    if start is not None:
        folder = resolve_adapter_folder(start)
    elif config.adapter.warm_start is not None:
        folder = stored_start(config)
    if source == IMAGE_ENCODER_FOLDER and folder is not None:
        source = str(folder / IMAGE_ENCODER_FOLDER)
    elif source == IMAGE_ENCODER_FOLDER:
        source = config.adapter.image_encoder_id
    if source is None or not (Path(source) / "config.json").is_file():
        return None
    try:
        return int(CLIPVisionConfig.from_pretrained(source).image_size)
    except (OSError, ValueError):
        return None  # what is wrong with it is said where it is loaded


def _start_from(config: TrainingConfig) -> str | None:
    """The folder or Hub repo of the adapter to continue with."""
    name = config.adapter.start_from
    return None if name is None else resolve_nano(name, "adapter")


def _note_recognizer(pipeline: Any, config: TrainingConfig) -> None:
    """The adapter's config names the recognizer of the identity loss, beside those of the adapter to continue with."""
    loss, adapter = config.identity_loss, pipeline.facesnap_config
    if loss.weight > 0 and loss.recognizer is not None:
        names = [*adapter.identity_loss_recognizers, recognizer_name(loss.recognizer.network)]
        noted = adapter.replace(identity_loss_recognizers=list(dict.fromkeys(names)))
        pipeline.register_to_config(facesnap_config=noted.to_dict())


def _start_adapter(pipeline: Any, config: TrainingConfig) -> None:
    adapter = config.adapter
    encoder = _image_encoder(config) if adapter.bundle_image_encoder else {}
    pipeline.init_facesnap_adapter(
        adapter_config(config), mixer=adapter.mixer, ffrnet_rank=adapter.ffrnet_rank, **encoder
    )


def _image_encoder(config: TrainingConfig) -> dict[str, Any]:
    """The image encoder that becomes a part of the adapter, and its processor, as `init_facesnap_adapter` takes them."""
    source = config.adapter.image_encoder_id
    if source is None or not Path(source).is_dir():
        raise InputError(f"adapter.image_encoder_id is {source!r}; with bundle_image_encoder it must be a folder")
    encoder = CLIPVisionModelWithProjection.from_pretrained(source, dtype=base_dtype(config))
    if (Path(source) / "preprocessor_config.json").is_file():
        processor = CLIPImageProcessor.from_pretrained(source)
    else:
        processor = default_image_processor(encoder)
    return {"image_encoder": encoder, "image_processor": processor}
