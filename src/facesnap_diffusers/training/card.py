"""The part of a model card that only the trainer knows."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from ..adapter.config import FaceSnapConfig
from ..settings import dump_settings
from .training_config import AdapterConfig, IdentityLossConfig, TrainingConfig


@dataclass
class RunSummary:
    r"""
    What a run has done.

    Attributes:
        step (`int`), skipped (`int`): Steps, and those of them that left the weights as they were.
        photos (`int`), people (`int`): Of the training shards; labeled people.
        processes (`int`), device (`str`), hours (`float`): What it ran on, and for how long.
        results (`dict[str, float]`): The last losses, and what the last validation measured.
    """

    step: int
    skipped: int
    photos: int
    people: int
    processes: int
    device: str
    hours: float
    results: dict[str, float] = field(default_factory=dict)


def describe_training(config: TrainingConfig, adapter: FaceSnapConfig, run: RunSummary) -> str:
    """What an adapter was trained on, for how long, on what, with which recipe, and what was measured, as Markdown."""
    statement = (config.data_statement or "").strip() or (
        "No statement about the origin of the photos, or about the consent of the people in them, was given."
    )
    people = f" of {run.people:,} labeled people" if run.people else ", without identity labels"
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
        "identity loss": _identity_loss(config.identity_loss),
        "face encoder": adapter.face_encoder_id,
        "validation pictures": f"the base's sampler, {config.validation.inference_steps} steps, guidance"
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
        return str(_shown(adapter.start_from))
    if adapter.warm_start is None:
        return "a fresh adapter"
    file = f" ({Path(adapter.warm_start_file).name})" if adapter.warm_start_file else ""
    return f"a fresh adapter with the weights of {_shown(adapter.warm_start)}{file}, whose tokens its mixer learned"


def _identity_loss(config: IdentityLossConfig) -> str:
    if config.weight == 0:
        return "none"
    where = "one-step predictions" if config.mode == "prediction" else f"samples of {config.steps} steps"
    return f"λ = {config.weight:g} on {where}, against the reference's {config.reference}"


def _public(config: TrainingConfig) -> dict[str, Any]:
    """The config without the folders of the machine that it ran on, and without what an adapter to start from replaces."""
    values = dump_settings(config)
    values["output_dir"] = _shown(values["output_dir"])
    values["base"]["model"] = _shown(values["base"]["model"])
    for name in ("shards", "validation"):
        values["data"][name] = [_shown(folder) for folder in values["data"][name]]
    for name in ("start_from", "warm_start", "image_encoder_id"):
        values["adapter"][name] = _shown(values["adapter"][name])
    recognizer = values["identity_loss"]["recognizer"]
    if recognizer is not None:
        recognizer["network"] = _shown(recognizer["network"])
        recognizer["center"] = _shown(recognizer["center"])
    if config.adapter.start_from is not None:
        values["adapter"] = {name: values["adapter"][name] for name in ("start_from", "train")}
    if config.adapter.warm_start is not None:
        for name in ("face_encoder_id", "face_embed_dim", "normalized_embeds", "num_tokens"):
            del values["adapter"][name]
    for name in ("hub", "data_statement"):
        del values[name]
    return values


def _shown(name: str | None) -> str | None:
    """The last part of a local path; names of Hub repos and of functions as they are."""
    if name is None:
        return None
    is_local = Path(name).expanduser().exists() or name.startswith(("/", "~", ".")) or name.count("/") > 1
    return Path(name).name if is_local and ":" not in name else name
