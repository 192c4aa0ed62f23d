"""What `facesnap eval` measured, for a model card: a section of Markdown, and the Hub's `model-index`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult

from ..errors import InputError, one_line
from .judges import independent_first, metric_of


#: The metrics of each recognizer that the Hub is told: how each is called, and which statistic of it.
FACE_METRICS = {
    "face_similarity": ("Face similarity (cosine)", "mean"),
    "face_distance": ("Face distance (median)", "median"),
    "top1": ("Top-1 retrieval (share)", "mean"),
    "top5": ("Top-5 retrieval (share)", "mean"),
    "no_face": ("Images without a face (share)", "mean"),
}

#: Those of the points that the first recognizer's detector finds.
POINT_METRICS = {
    "landmark_nme": ("Landmark error", "mean"),
    "yaw_error": ("Yaw error (degrees)", "mean"),
}

#: And those that have nothing to do with a recognizer.
METRICS = {
    "clip_t": ("CLIP-T", "mean"),
    "clip_i": ("CLIP-I", "mean"),
    "diversity": ("Diversity (LPIPS)", "mean"),
    "fid": ("FID", "mean"),
    "kid": ("KID", "mean"),
}


def read_evaluation(folder: Path, method: str | None = None) -> tuple[str, list[EvalResult]]:
    r"""
    The results of an evaluation.

    Args:
        folder (`Path`): The output of `facesnap eval`.
        method (`str`, *optional*): The name of the adapter's row; by default that of the only method of kind `facesnap`.

    Returns:
        The table with its notes and the sampling of the row, as Markdown; and the row's metrics, each with its number of
        images, those of likeness by each recognizer, first by those that took no part in the adapter's training.

    Raises:
        InputError: The folder does not contain the results of an evaluation, or no such method.
    """
    try:
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        table = (folder / "results.md").read_text(encoding="utf-8")
        benchmark = results["benchmark"]
        encoder_ids = list(results["face_encoder_ids"])
        methods = {
            name: (row["settings"], row["scheduler"], row["trained_with_face_encoder_ids"], row["groups"]["all"])
            for name, row in results["methods"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{folder} does not contain the results of an evaluation ({one_line(error)}); name the output folder of"
            " facesnap eval"
        ) from None
    row = _row({name: settings["kind"] for name, (settings, *_) in methods.items()}, method)
    settings, scheduler, taught_by, metrics = methods[row]
    _, _, below_the_title = table.partition("\n")
    text = below_the_title.strip()
    if scheduler is not None:
        text += f"\n\n{_sampling(row, settings, scheduler)}"
    measured: list[EvalResult] = []

    def add(kinds: Mapping[str, tuple[str, str]], by: str = "", judge: str = encoder_ids[0]) -> None:
        for name, (title, statistic) in kinds.items():
            values = metrics.get(metric_of(name, judge, encoder_ids), {})
            if statistic in values:
                measured.append(
                    EvalResult(
                        task_type="text-to-image",
                        dataset_type=benchmark,
                        dataset_name=benchmark,
                        metric_type=name,
                        metric_name=f"{title}{by}, n={values['n']}",
                        metric_value=round(values[statistic], 4),
                    )
                )

    for judge in independent_first(encoder_ids, taught_by):
        add(FACE_METRICS, f" by {judge}{' (took part in training)' if judge in taught_by else ''}", judge)
    add(POINT_METRICS, f" by {encoder_ids[0]}")
    add(METRICS)
    return text, measured


def _row(kinds: Mapping[str, str], method: str | None) -> str:
    if method is not None:
        if method not in kinds:
            raise InputError(f"method {method!r} was not evaluated; choose one of {', '.join(kinds)}")
        return method
    own = [name for name, kind in kinds.items() if kind == "facesnap"]
    if len(own) != 1:
        raise InputError(
            f"{len(own)} methods of the evaluation are of kind facesnap; name the row of this adapter with --method, one of"
            f" {', '.join(kinds)}"
        )
    return own[0]


def _sampling(row: str, settings: Mapping[str, Any], scheduler: str) -> str:
    """How the images of a row were sampled, in a sentence."""
    said = [f"{settings['num_inference_steps']} steps", f"guidance scale {settings['guidance_scale']:g}"]
    scales = [name for name in ("identity_scale", "landmark_scale") if name in settings]
    said += [f"{name.replace('_', ' ')} {settings[name]:g}" for name in scales]
    if settings.get("width") and settings.get("height"):
        said.append(f"{settings['width']} × {settings['height']} px")
    return f"Sampled for *{row}*: the base model's own scheduler, `{scheduler}`, {', '.join(said)}."
