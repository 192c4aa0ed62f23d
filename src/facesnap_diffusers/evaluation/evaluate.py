"""An evaluation from start to end: generate what is missing, measure it, sum up."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.PngImagePlugin
import torch

from ..clip import ClipEncoder
from ..errors import InputError, NoFaceFoundError, one_line
from ..faces.analyzers import FaceAnalyzer
from ..files import atomic_file
from ..preflight import check_device, make_output_folder
from ..settings import dump_settings
from .benchmarks import load_benchmark
from .benchmarks.base import Benchmark
from .cases import Case, image_files, safe_id
from .eval_config import EvalConfig
from .features import FeatureStore, shared_analyzer
from .methods import Method, TextToImage, make_method
from .report import write_report
from .sampling import Sampling
from .scoring import Scorer, summarize


logger = logging.getLogger(__name__)

DEFAULT_CLIP_MODEL = "openai/clip-vit-large-patch14"
FINGERPRINT = "facesnap"
METHOD_FILE = "method.json"

#: What only a method that is loaded knows of itself, kept in its file for runs that find all images there.
LOADED = ("trained_with_face_encoder_ids", "scheduler")

#: Wraps an iterable to show progress: the items, a description, and how many there are.
Progress = Callable[[Iterable[Any], str, int], Iterable[Any]]


def evaluate(
    config: EvalConfig,
    *,
    face_analyzers: Sequence[FaceAnalyzer] | None = None,
    real_features: torch.nn.Module | None = None,
    perceptual_distance: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    r"""
    Runs an evaluation. Stopped and run again, it continues where it was; with nothing missing it only sums up.

    Args:
        config ([`EvalConfig`]): What to do.
        face_analyzers (`Sequence[FaceAnalyzer]`, *optional*): In place of those that `config.face_encoder_ids` names.
        real_features (`torch.nn.Module`, *optional*): In place of what `config.real_features` names: takes images
            `(N, 3, 299, 299)`, `uint8`, gives features `(N, D)`.
        perceptual_distance (`Callable`, *optional*): In place of LPIPS: takes two batches of images in [-1, 1].
        progress (`Callable`, *optional*): Wraps iterables, see `Progress`.

    Returns:
        `dict`: The content of `results.json` in the output folder; a table and a contact sheet stand beside it.

    Raises:
        InputError: The data, a model or the device cannot be used, the output folder cannot be written to, or contains
            images of other settings.
        MissingDependencyError: The library of a metric is not installed.
    """
    progress = progress or (lambda items, description, total: items)
    sampling = config.sampling
    methods = [make_method(values) for values in config.methods]
    benchmark = load_benchmark(config.benchmark, config.data, config.seed)
    gallery = {case.person: case.reference for case in benchmark.cases}
    if config.limit is not None:
        benchmark = benchmark.limit(config.limit)

    # what can fail for want of a folder, device, library or model fails before hours of sampling
    output = make_output_folder(config.output)
    check_device(config.device)
    analyzers = list(face_analyzers or [shared_analyzer(encoder) for encoder in config.face_encoder_ids])
    clip = _clip_encoder(config, benchmark)
    diversity, distance = _set_metrics(config, clip, real_features, perceptual_distance)
    store = FeatureStore(output / "features", analyzers, clip)
    scorer = Scorer(benchmark, store, progress)
    people_without_face = scorer.read_references(gallery)
    cases = [case for case in benchmark.cases if case.person not in people_without_face]
    if not cases:
        raise InputError("no reference shows a face; check the data, or judge with other face_encoder_ids")
    benchmark = replace(benchmark, cases=tuple(cases))
    for method in methods:
        method.check(cases)

    images: dict[str, dict[str, Path]] = {}
    loaded: dict[str, dict[str, Any]] = {}
    for method in methods:
        folder = output / safe_id(method.name)
        generate(method, cases, sampling, folder, config.batch_size, config.device, progress)
        loaded[method.name] = _read_about(folder)
        images[method.name] = {case.id: folder / f"{case.id}.png" for case in cases}
    text_only = next((images[method.name] for method in methods if isinstance(method, TextToImage)), None)

    results: dict[str, Any] = {
        "benchmark": benchmark.name,
        "cases": len(cases),
        "people": len({case.person for case in cases}),
        "gallery": len(gallery) - len(people_without_face),
        "people_without_face": sorted(people_without_face),
        "face_encoder_ids": [analyzer.encoder for analyzer in analyzers],
        "clip_model_id": clip.model_id if clip else None,
        "config": dump_settings(config),
        "methods": {},
    }
    for method in methods:
        rows = scorer.score(method.name, images[method.name], text_only)
        folder = output / safe_id(method.name)
        _write_text(folder / "scores.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
        summary = summarize(rows)
        for group, metrics in summary.items():
            paths = [
                images[method.name][case.id]
                for case in cases
                if group in ("all", case.group) and images[method.name][case.id].exists()
            ]
            metrics |= _set_scores(cases, images[method.name], paths, diversity, distance, config.device)
        results["methods"][method.name] = {
            "settings": method.settings(sampling),
            **loaded[method.name],
            "groups": summary,
        }
    write_report(results, benchmark, images, output, config.sheet_rows, scorer)
    return results


def generate(
    method: Method,
    cases: Sequence[Case],
    sampling: Sampling,
    folder: Path,
    batch_size: int = 1,
    device: str = "cpu",
    progress: Progress | None = None,
) -> None:
    r"""
    Generates the images that a folder lacks, as PNGs named by the cases' ids. A case in whose reference the method finds
    no face gets a file `<id>.failed` instead.

    Raises:
        InputError: The folder contains images of other settings or cases.
    """
    folder.mkdir(parents=True, exist_ok=True)
    settings = json.dumps(method.settings(sampling), sort_keys=True, default=str)
    missing, fingerprints = [], {}
    for case in cases:
        fingerprints[case.id] = hashlib.sha256(f"{settings}|{method.fingerprint(case)}".encode()).hexdigest()[:16]
        state = _state(folder, case.id, fingerprints[case.id])
        if state == "other":
            raise InputError(
                f"{folder / case.id}.png was made with other settings or data than {method.name} has now;"
                " name another output, or delete that folder"
            )
        if state == "missing":
            missing.append(case)
    if not missing:
        return
    method.load(sampling, device)
    about = {"settings": json.loads(settings), **{name: getattr(method, name) for name in LOADED}}
    _write_text(folder / METHOD_FILE, json.dumps(about, indent=2) + "\n")
    batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
    for batch in progress(batches, f"{method.name}: images", len(batches)) if progress else batches:
        images: Sequence[PIL.Image.Image | None]
        try:
            images = method.generate(batch)
        except NoFaceFoundError:
            images = [_try(method, case) for case in batch]
        for case, image in zip(batch, images, strict=True):
            _save(folder, case.id, image, fingerprints[case.id])
    method.unload()


def _read_about(folder: Path) -> dict[str, Any]:
    """What a method that was loaded once has said of itself."""
    try:
        about = json.loads((folder / METHOD_FILE).read_text())
        return {name: about[name] for name in LOADED}
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder / METHOD_FILE} does not say what made the images ({one_line(error)}); name another output, or delete"
            " that folder"
        ) from None


def _try(method: Method, case: Case) -> PIL.Image.Image | None:
    try:
        (image,) = method.generate([case])
    except NoFaceFoundError as error:
        logger.warning("%s: %s: %s", method.name, case.id, error)
        return None
    return image


def _state(folder: Path, case_id: str, fingerprint: str) -> str:
    """Whether the image of a case is `"done"`, `"missing"`, or was made with `"other"` settings."""
    image, failed = folder / f"{case_id}.png", folder / f"{case_id}.failed"
    if image.exists():
        with PIL.Image.open(image) as opened:
            return "done" if opened.info.get(FINGERPRINT) == fingerprint else "other"
    if failed.exists():
        return "done" if failed.read_text() == fingerprint else "missing"
    return "missing"


def _save(folder: Path, case_id: str, image: PIL.Image.Image | None, fingerprint: str) -> None:
    target = folder / f"{case_id}{'.failed' if image is None else '.png'}"
    if image is None:
        _write_text(target, fingerprint)
        return
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text(FINGERPRINT, fingerprint)
    with atomic_file(target) as temporary:
        image.convert("RGB").save(temporary, format="PNG", pnginfo=info)


def _write_text(path: Path, text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text)


def _clip_encoder(config: EvalConfig, benchmark: Benchmark) -> ClipEncoder | None:
    name = config.clip_model_id or (DEFAULT_CLIP_MODEL if benchmark.needs_clip else "none")
    return None if name == "none" else ClipEncoder(name, config.device)


def _set_metrics(
    config: EvalConfig, clip: ClipEncoder | None, real_features: Any, perceptual_distance: Any
) -> tuple[Any, Any]:
    """The functions for diversity and for FID and KID, `None` where the config leaves them out."""
    diversity, distance = perceptual_distance, None
    if config.diversity and diversity is None:
        from .distributions import lpips

        diversity = lpips(config.device)
    if config.real is not None:
        from .distributions import ClipImageFeatures, DistributionDistance, inception_features

        if real_features is None and config.real_features == "clip":
            if clip is None:
                raise InputError("real_features: clip needs a clip_model_id; name one")
            real_features = ClipImageFeatures(clip)
        elif real_features is None:
            real_features = inception_features()
        distance = DistributionDistance(image_files(Path(config.real)), real_features, config.device)
    return diversity, distance


def _set_scores(
    cases: Sequence[Case], images: dict[str, Path], paths: Sequence[Path], diversity: Any, distance: Any, device: str
) -> dict[str, Any]:
    scores: dict[str, Any] = {}
    counts = {"fid": len(paths), "kid": len(paths)}
    if diversity is not None:
        from .distributions import mean_pairwise_distance

        made = set(paths)
        groups: dict[tuple[str, str], list[Path]] = {}
        for case in cases:
            if images[case.id] in made:
                groups.setdefault((case.person, case.prompt), []).append(images[case.id])
        scores["diversity"] = mean_pairwise_distance(groups.values(), diversity, device)
        counts["diversity"] = sum(len(group) for group in groups.values() if len(group) > 1)
    if distance is not None:
        scores["fid"], scores["kid"] = distance(paths)
    return {name: {"mean": value, "n": counts[name]} for name, value in scores.items() if value is not None}
