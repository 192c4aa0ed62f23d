"""The results as JSON, as a Markdown table, and as a contact sheet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
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
from .judges import LIKENESS, TAUGHT, independent_first, metric_of, short_names
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
    """
    A table with a row for each method, the best value of each column bold, and notes on how to read it. Each recognizer has
    its columns of likeness, those that took no part in training first. The number of images stands in a column's head, or
    in its cells where the methods differ in it.
    """
    methods = results["methods"]
    table = [[name.replace("|", "\\|") for name in ("method", *methods)]]
    for column, judge in _columns(results, benchmark):
        measured = {name: values for name, method in methods.items() if (values := _values(method, column))}
        if measured:
            table.append(_cells(methods, measured, column, judge))
    head, *rows = ("| " + " | ".join(cells) + " |" for cells in zip(*table, strict=True))
    rule = "| --- |" + " ---: |" * (len(table) - 1)
    notes = [f"- {note}" for note in _notes(results, benchmark)]
    return "\n".join([f"# {benchmark.name}", "", head, rule, *rows, "", *notes, ""])


def _cells(methods: Mapping[str, Any], measured: Mapping[str, Any], column: Column, judge: str | None) -> list[str]:
    """The head of a column, and its cell for each method."""
    unit = 100 if column.statistic == "percent" else 1
    numbers = {name: unit * values[_statistic(column)] for name, values in measured.items()}
    best = _best(numbers.values(), column) if len(methods) > 1 else None
    counts = {values["n"] for values in measured.values()}
    head = column.title + {"higher": " ↑", "lower": " ↓"}.get(column.better, "")
    is_same = len(counts) == 1
    cells = [f"{head}, n={min(counts)}" if is_same else head]
    for name, method in methods.items():
        if name not in measured:
            cells.append("–")
            continue
        cell = f"{numbers[name]:.{column.digits}f}"
        if best == round(numbers[name], column.digits):
            cell = f"**{cell}**"
        if judge in method["trained_with_face_encoder_ids"]:
            cell += TAUGHT
        cells.append(cell if is_same else f"{cell} (n={measured[name]['n']})")
    return cells


def _columns(results: Mapping[str, Any], benchmark: Benchmark) -> list[tuple[Column, str | None]]:
    """The columns of the table: those of likeness for each recognizer, with its id."""
    encoder_ids, taught_by = results["face_encoder_ids"], _taught_by(results)
    names = short_names(encoder_ids)
    columns: list[tuple[Column, str | None]] = []
    for column in benchmark.columns:
        if column.metric not in LIKENESS:
            columns.append((column, None))
            continue
        for judge in independent_first(encoder_ids, taught_by):
            title = f"{column.title}, {names[judge]}" if len(encoder_ids) > 1 else column.title
            title += TAUGHT if judge in taught_by else ""
            metric = metric_of(column.metric, judge, encoder_ids)
            columns.append((replace(column, title=title, metric=metric), judge))
    return columns


def _taught_by(results: Mapping[str, Any]) -> dict[str, list[str]]:
    """The recognizers that took part in the training of methods, and of which."""
    taught: dict[str, list[str]] = {}
    for name, method in results["methods"].items():
        for encoder_id in method["trained_with_face_encoder_ids"]:
            taught.setdefault(encoder_id, []).append(name)
    return taught


def _values(method: Mapping[str, Any], column: Column) -> dict[str, Any] | None:
    """The statistics of a column's metric and their `n`; `None` where a method has none."""
    values: dict[str, Any] = method["groups"].get(column.group or "all", {}).get(column.metric, {})
    return values if _statistic(column) in values else None


def _statistic(column: Column) -> str:
    return "mean" if column.statistic == "percent" else column.statistic


def _best(numbers: Iterable[float], column: Column) -> float | None:
    choose = {"higher": max, "lower": min}.get(column.better)
    return None if choose is None else round(choose(numbers), column.digits)


def _notes(results: Mapping[str, Any], benchmark: Benchmark) -> list[str]:
    encoder_ids, taught_by = results["face_encoder_ids"], _taught_by(results)
    names = short_names(encoder_ids)
    clip_id = results["clip_model_id"]
    # a folder's path is nobody's business but its owner's, for the table may be published
    clip = f", CLIP by {Path(clip_id).name if Path(clip_id).is_absolute() else clip_id}." if clip_id else "."
    notes = [
        *benchmark.notes,
        f"{results['cases']} images a method of {results['people']} people, retrieval among {results['gallery']};"
        f" seed {results['config']['seed']}.",
        f"Faces by {encoder_ids[0]}{clip}",
        "n is the number of images that a figure comes from. Likeness is measured on images with a face; one without counts as"
        " a miss in retrieval.",
    ]
    if len(encoder_ids) > 1:
        judges = " and ".join(f"{encoder_id} ({names[encoder_id]})" for encoder_id in encoder_ids)
        notes.append(f"Likeness by {judges}, each with the faces that its own detector finds.")
    taught = [encoder_id for encoder_id in encoder_ids if encoder_id in taught_by]
    advice = "; judge with another one too" if len(taught) == len(encoder_ids) else ""
    notes += [
        f"{TAUGHT} {encoder_id} took part in the training of {', '.join(taught_by[encoder_id])}, by its embeddings or an"
        f" identity loss, which flatters likeness{advice}."
        for encoder_id in taught
    ]
    if results["people_without_face"]:
        missing = len(results["people_without_face"])
        notes.append(f"Left out, because no face is found in their reference: {missing} of the people.")
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
