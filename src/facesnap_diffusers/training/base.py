"""The frozen base model with the adapter that is trained on it."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

from ..adapter.config import IMAGE_ENCODER_FOLDER, FaceSnapConfig
from ..errors import InputError
from .config import TrainingConfig


def load_pipeline(config: TrainingConfig) -> Any:
    """The base model in its dtype, frozen, with the adapter: trained parts in float32, as optimizers need them."""
    from .. import FaceSnapPipeline, FaceSnapXLPipeline

    for module in config.base.imports:
        try:
            import_module(module)
        except ImportError as error:
            raise InputError(f"base.imports: {module!r} cannot be imported ({error}); correct its name") from None
    is_xl = config.base.family == "sdxl"
    pipeline_class = FaceSnapXLPipeline if is_xl else FaceSnapPipeline
    dtype = base_dtype(config)
    options: dict[str, Any] = {"dtype": dtype}
    if not is_xl:
        options["safety_checker"] = None
    try:
        if config.base.model.endswith(".safetensors"):
            pipeline = pipeline_class.from_single_file(config.base.model, **options)
        else:
            pipeline = pipeline_class.from_pretrained(
                config.base.model, revision=config.base.revision, variant=config.base.variant, **options
            )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"base.model {config.base.model!r} cannot be loaded ({reason}); correct it") from error
    if is_xl:
        pipeline.vae.to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.requires_grad_(False).eval()

    if config.adapter.start_from is not None:
        pipeline.load_facesnap_adapter(config.adapter.start_from)
    else:
        _start_adapter(pipeline, config)
    missing = [part for part in config.adapter.train if getattr(pipeline, part) is None]
    if missing:
        raise InputError(f"adapter.train has {missing}, which {config.adapter.start_from} has not; leave them out")
    for part in config.adapter.train:
        if getattr(pipeline, part).dtype != torch.float32:
            getattr(pipeline, part).to(torch.float32)
    if config.gradient_checkpointing:
        for name in ("unet", "ffrnet", "vae"):
            component = getattr(pipeline, name)
            if component is not None and getattr(component, "_supports_gradient_checkpointing", False):
                component.enable_gradient_checkpointing()
    return pipeline


def base_dtype(config: TrainingConfig) -> torch.dtype:
    of_precision = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[config.mixed_precision]
    return of_precision if config.base.dtype is None else getattr(torch, config.base.dtype)


def _start_adapter(pipeline: Any, config: TrainingConfig) -> None:
    adapter = config.adapter
    encoder = processor = None
    if adapter.bundle_image_encoder:
        if adapter.image_encoder is None or not Path(adapter.image_encoder).is_dir():
            raise InputError(
                f"adapter.image_encoder is {adapter.image_encoder!r}; with bundle_image_encoder it must be a folder"
            )
        encoder = CLIPVisionModelWithProjection.from_pretrained(adapter.image_encoder, dtype=base_dtype(config))
        if (Path(adapter.image_encoder) / "preprocessor_config.json").is_file():
            processor = CLIPImageProcessor.from_pretrained(adapter.image_encoder)
        else:
            side = encoder.config.image_size
            processor = CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    pipeline.init_facesnap_adapter(
        FaceSnapConfig(
            face_encoder_id=adapter.face_encoder,
            face_embed_dim=adapter.face_embed_dim,
            image_encoder_id=IMAGE_ENCODER_FOLDER if adapter.bundle_image_encoder else adapter.image_encoder,
            num_tokens=adapter.num_tokens,
            parts=list(adapter.parts),
            base_model=config.base.model
            if "/" in config.base.model and not Path(config.base.model).exists()
            else None,
            license=adapter.license,
        ),
        mixer=adapter.mixer,
        image_encoder=encoder,
        image_processor=processor,
    )
