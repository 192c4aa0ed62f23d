"""The part of a model card that only the trainer knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import torch
import yaml

from ..adapter.config import FaceSnapConfig
from ..settings import dump_settings
from .training_config import AdapterConfig, IdentityLossConfig, TrainingConfig


#: Settings whose text never is a path, whatever slashes it has and whatever lies in the folder of the run.
_NO_PATHS = ("caption", "prompt", "license", "face_encoder_id", "judge")


@dataclass
class RunSummary:
    r"""
    What a run has done.

    Attributes:
        step (`int`), skipped (`int`): Steps, and those of them that left the weights as they were.
        photos (`int`), people (`int`): Of the training shards; labeled, or told apart by their faces.
        processes (`int`), device (`str`), hours (`float`): What it ran on, and for how long.
        sampler (`str`): Class of the scheduler that the validation pictures are made with.
        results (`dict[str, float]`): The last losses, and what the last validation measured.
    """

    step: int
    skipped: int
    photos: int
    people: int
    processes: int
    device: str
    hours: float
    sampler: str
    results: dict[str, float] = field(default_factory=dict)


def describe_training(config: TrainingConfig, adapter: FaceSnapConfig, run: RunSummary) -> str:
    """What an adapter was trained on, for how long, on what, with which recipe, and what was measured, as Markdown."""
    statement = (config.data_statement or "").strip() or (
        "No statement about the origin of the photos, or about the consent of the people in them, was given."
    )
    people = f" of {run.people:,} people" if run.people else ", without identity labels"
    batch = config.batch_size * config.gradient_accumulation * run.processes
    rows = {
        "data": f"{run.photos:,} photos{people}",
        "steps": f"{run.step:,}" + (f", {run.skipped:,} of them skipped (not finite)" if run.skipped else ""),
        "batch": f"{batch} samples a step",
        "samples": f"{run.step * batch:,}",
        "resolution": f"{config.data.resolution} px",
        "hardware": f"{run.processes} × {run.device}, {run.hours:.1f} hours",
        "precision": {"no": "float32"}.get(config.mixed_precision, config.mixed_precision),
        "trained parts": ", ".join(config.adapter.train),
        "started from": _started_from(config.adapter),
        "identity loss": _identity_loss(config),
        "face encoder": adapter.face_encoder_id,
        "validation pictures": f"{run.sampler}, {config.validation.inference_steps} steps, guidance"
        f" {config.validation.guidance_scale:g}, identity and landmarks at the pipeline's default scales",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    measured = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(run.results.items()))
    results = f"| measure | value |\n|---|---|\n{measured}" if measured else "Nothing was measured during training."
    return f"""{statement}

| | |
|---|---|
{table}

At the end of training, on the people that the run itself set aside or, where the name has no `validation`, on its training
samples:

{results}

<details><summary>Config</summary>

```yaml
{yaml.safe_dump(_public(config), sort_keys=False, allow_unicode=True)}```

</details>"""


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _started_from(adapter: AdapterConfig) -> str:
    if adapter.start_from is not None:
        return _shown(adapter.start_from)
    if adapter.warm_start is None:
        return "a fresh adapter"
    file = f" ({Path(adapter.warm_start_file).name})" if adapter.warm_start_file else ""
    return f"a fresh adapter with the weights of {_shown(adapter.warm_start)}{file}, whose tokens its mixer learned"


def _identity_loss(config: TrainingConfig) -> str:
    identity, loss = config.identity_loss, config.loss
    parts = []
    if identity.weight > 0:
        against = {
            "embedding": "the reference's stored embedding",
            "photo": "the reference, another photo",
            "target": "the target photo",
        }
        by = "" if identity.recognizer is None else f" by {_shown(identity.recognizer.network)}"
        parts.append(f"λ = {identity.weight:g}{by} on {_judged(identity)}, against {against[identity.reference]}")
        if identity.contrastive > 0:
            parts.append(
                f"contrastive, weight {identity.contrastive:g}, with {identity.negatives:,} people and temperature"
                f" {identity.temperature:g}"
            )
    if loss.align_semantic > 0 or loss.align_layout > 0:
        weights = f"semantic {loss.align_semantic:g}, layout {loss.align_layout:g}"
        parts.append(f"alignment: {weights}, at every {loss.align_every} steps")
    return "; ".join(parts) or "none"


def _judged(config: IdentityLossConfig) -> str:
    """The pictures in which the identity loss looks for a face."""
    if config.mode == "prediction":
        return f"one-step predictions with a signal-to-noise ratio of at least {config.min_snr:g}"
    lora = "" if config.lora is None else f" with {_shown(config.lora)}"
    size = "" if config.resolution is None else f" of {config.resolution} px"
    prompt = "" if config.prompt is None else f" to the prompt “{config.prompt}”"
    return (
        f"samples{size}{prompt} in {config.steps} steps{lora}, {config.gradient_steps} of them with a gradient, at every"
        f" {config.every} steps"
    )


def _public(config: TrainingConfig) -> dict[str, Any]:
    """The config without the folders of the machine that it ran on, and without what an adapter to start from replaces."""
    values = {name: value for name, value in dump_settings(config).items() if name not in ("hub", "data_statement")}
    values = _without_folders(values)
    if config.adapter.start_from is not None:
        values["adapter"] = {name: values["adapter"][name] for name in ("start_from", "train")}
    if config.adapter.warm_start is not None:
        for name in ("face_encoder_id", "face_embed_dim", "normalized_embeds", "num_tokens"):
            del values["adapter"][name]
    return values


def _without_folders(value: Any, name: str = "") -> Any:
    """Nested settings with each text as [`_shown`] shows it, but for those that never are a path."""
    if isinstance(value, dict):
        return {key: _without_folders(item, key) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_folders(item, name) for item in value]
    return _shown(value) if isinstance(value, str) and name not in _NO_PATHS else value


def _shown(name: str) -> str:
    """The last part of a local path; names of Hub repos and functions as they are, addresses without what lets others in."""
    if "://" in name:
        address = urlsplit(name)
        if address.scheme in ("file", "local"):
            return PurePosixPath(address.path).name
        # without user, password and query, which may let others in
        return urlunsplit((address.scheme, address.netloc.rpartition("@")[2], address.path, "", ""))
    if "\\" in name:
        return PureWindowsPath(name).name
    is_function = ":" in name and "/" not in name
    if is_function or name.startswith("hf:"):
        return name
    is_local = Path(name).expanduser().exists() or name.startswith(("/", "~", ".")) or name.count("/") > 1
    return Path(name).name if is_local else name
