"""The results as JSON, as a Markdown table, and as a contact sheet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageFont
import torch

from ..faces.drawing import draw_landmarks
from ..faces.photo import load_photo
from ..files import atomic_file
from .benchmarks.base import Benchmark, Column
from .cases import Case
from .scoring import Scorer


CELL = 192
GAP = 6
HEADER = 30
CAPTION = 34


def write_report(
    results: dict[str, Any],
    benchmark: Benchmark,
    images: Mapping[str, Mapping[str, Path]],
    output: Path,
    sheet_rows: int,
    scorer: Scorer,
) -> None:
    """Writes `results.json`, `results.md` and `contact_sheet.png` to the output folder."""
    packages = ("facesnap-diffusers", "diffusers", "transformers", "torch", "numpy")
    results["versions"] = {name: version(name) for name in packages}
    with atomic_file(output / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=2) + "\n")
    with atomic_file(output / "results.md") as temporary:
        temporary.write_text(markdown(results, benchmark))
    if sheet_rows > 0:
        with atomic_file(output / "contact_sheet.png") as temporary:
            contact_sheet(benchmark, images, scorer, sheet_rows).save(temporary)


def markdown(results: Mapping[str, Any], benchmark: Benchmark) -> str:
    """A table with a row for each method, the best value of each column bold, and notes on how to read it."""
    methods = results["methods"]
    columns = [
        column
        for column in benchmark.columns
        if any(_value(method, column) is not None for method in methods.values())
    ]
    heads = [
        "method",
        *(f"{column.title}{ {'higher': ' ↑', 'lower': ' ↓'}.get(column.better, '') }" for column in columns),
    ]
    lines = ["| " + " | ".join(heads) + " |", "| --- |" + " ---: |" * len(columns)]
    best = {column: _best(methods, column) for column in columns}
    for name, method in methods.items():
        cells = []
        for column in columns:
            value = _value(method, column)
            text = "–" if value is None else f"{value:.{column.digits}f}"
            is_best = len(methods) > 1 and value is not None and best[column] == round(value, column.digits)
            cells.append(f"**{text}**" if is_best else text)
        lines.append("| " + " | ".join([name.replace("|", "\\|"), *cells]) + " |")
    return "\n".join(
        [f"# {benchmark.name}", "", *lines, "", *(f"- {note}" for note in _notes(results, benchmark)), ""]
    )


def _value(method: Mapping[str, Any], column: Column) -> float | None:
    metrics = method["groups"].get(column.group or "all", {})
    values = metrics.get(column.metric)
    if values is None:
        return None
    return 100 * values["mean"] if column.statistic == "percent" else values.get(column.statistic)


def _best(methods: Mapping[str, Any], column: Column) -> float | None:
    values = [value for method in methods.values() if (value := _value(method, column)) is not None]
    if not values or not column.better:
        return None
    return round(max(values) if column.better == "higher" else min(values), column.digits)


def _notes(results: Mapping[str, Any], benchmark: Benchmark) -> list[str]:
    judge = results["face_encoder_ids"][0]
    notes = [
        *benchmark.notes,
        f"{results['cases']} images a method of {results['people']} people, retrieval among {results['gallery']};"
        f" seed {results['config']['seed']}.",
        f"Faces by {judge}" + (f", CLIP by {results['clip_model_id']}." if results["clip_model_id"] else "."),
        "Means over the images with a face; one without counts as a miss in retrieval.",
    ]
    own = [name for name, method in results["methods"].items() if method["trained_with_face_encoder_id"] == judge]
    if own:
        notes.append(
            f"{', '.join(own)}: made from embeddings of the recognizer that judges here, which flatters likeness; judge"
            " with another one too."
        )
    if results["people_without_face"]:
        missing = ", ".join(results["people_without_face"])
        notes.append(f"Left out, because no face is found in their reference: {missing}.")
    return notes


def contact_sheet(
    benchmark: Benchmark, images: Mapping[str, Mapping[str, Path]], scorer: Scorer, rows: int
) -> PIL.Image.Image:
    """Cases from all over the benchmark: reference, target (the true picture, or the target landmarks), each method."""
    cases = [case for case in benchmark.cases if case.person in scorer.references]
    cases = [cases[i * len(cases) // min(rows, len(cases))] for i in range(min(rows, len(cases)))]
    with_target = any(case.is_steered or case.ground_truth for case in cases)
    heads = ["reference", *(["target"] if with_target else []), *images]
    width = GAP + len(heads) * (CELL + GAP)
    sheet = PIL.Image.new("RGB", (width, HEADER + len(cases) * (CELL + CAPTION + GAP)), "white")
    draw = PIL.ImageDraw.Draw(sheet)
    for column, head in enumerate(heads):
        draw.text((GAP + column * (CELL + GAP), 8), _fitting(draw, head, CELL, 15), "black", _font(15))
    for row, case in enumerate(cases):
        top = HEADER + row * (CELL + CAPTION + GAP)
        cells = [_open(case.reference[0])]
        if with_target:
            cells.append(_target_picture(case, scorer))
        cells += [_open(files[case.id]) for files in images.values()]
        for column, cell in enumerate(cells):
            if cell is not None:
                cell.thumbnail((CELL, CELL), PIL.Image.Resampling.LANCZOS)
                if max(cell.size) < CELL:
                    scale = CELL / max(cell.size)
                    size = [round(side * scale) for side in cell.size]
                    cell = cell.resize(size, PIL.Image.Resampling.BICUBIC)
            else:
                cell = PIL.Image.new("RGB", (CELL, CELL), (235, 235, 235))
            left = GAP + column * (CELL + GAP)
            sheet.paste(cell, (left + (CELL - cell.width) // 2, top + (CELL - cell.height) // 2))
        draw.text((GAP, top + CELL + 4), _fitting(draw, case.prompt, width - 2 * GAP, 14), (60, 60, 60), _font(14))
    return sheet


def _target_picture(case: Case, scorer: Scorer) -> PIL.Image.Image | None:
    if case.ground_truth is not None:
        return _open(case.ground_truth)
    if not case.is_steered:
        return None
    target = torch.from_numpy(scorer.target(case, 512, 512))
    drawn = draw_landmarks(target[None], 512, 512)[0].permute(1, 2, 0)
    return PIL.Image.fromarray((drawn * 255).round().byte().numpy())


def _open(path: Path) -> PIL.Image.Image | None:
    return PIL.Image.fromarray(load_photo(path)) if path.exists() else None


def _font(size: int) -> Any:
    return PIL.ImageFont.load_default(size)


def _fitting(draw: PIL.ImageDraw.ImageDraw, text: str, width: int, size: int) -> str:
    """The text, or as much of it as fits."""
    if draw.textlength(text, _font(size)) <= width:
        return text
    while text and draw.textlength(text + "…", _font(size)) > width:
        text = text[:-1]
    return text + "…"
