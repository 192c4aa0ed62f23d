"""The table and the Hub's `model-index`: how many images a figure comes from, and several recognizers."""

import json
import shutil

import PIL.Image
import pytest
import tiny
from evaluation_fixtures import DLIB, SAMPLING, GridAnalyzer, run, scores

from facesnap_diffusers import FaceSnapConfig, InputError
from facesnap_diffusers.evaluation.benchmarks import load_benchmark
from facesnap_diffusers.evaluation.judges import independent_first, short_names
from facesnap_diffusers.evaluation.model_index import read_evaluation
from facesnap_diffusers.evaluation.report import markdown


pytestmark = pytest.mark.slow

GRID = GridAnalyzer.encoder


def columns_of(table):
    """The cells by the column's head, then by the method."""
    head, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    return {title: {row[0]: row[number] for row in rows} for number, title in enumerate(head)}


def test_from_how_many_images_a_figure_comes(people, tmp_path):
    """One of six pictures is black and shows no face: n differs in likeness, and is the same in retrieval."""
    for number, case in enumerate(load_benchmark("nano", people).cases):
        picture = PIL.Image.open(case.reference[0]) if number else PIL.Image.new("RGB", (64, 64))
        picture.save(tmp_path / f"{case.id}.png")
    methods = ["reference", {"kind": "images", "folder": str(tmp_path)}]
    results = run(people, tmp_path / "out", methods, sheet_rows=0)
    columns = columns_of((tmp_path / "out/results.md").read_text())
    assert columns["similarity ↑"] == {"reference": "**1.000** (n=6)", "images": "**1.000** (n=5)"}
    assert columns["no face % ↓, n=6"] == {"reference": "**0.0**", "images": "16.7"}
    assert columns["top-1 % ↑, n=6"] == {"reference": "**100.0**", "images": "83.3"}
    assert scores(results, "images", "face_similarity")["n"] == 5
    alone = {**results, "methods": {"images": results["methods"]["images"]}}
    assert columns_of(markdown(alone, load_benchmark("nano", people)))["similarity ↑, n=5"] == {"images": "1.000"}


@pytest.fixture(scope="module")
def judged(astronaut, models, dlib_analyzer, tmp_path_factory):
    """
    Two recognizers, the first of which gave two adapters their embeddings; the other one took part in the identity loss of
    one of them.
    """
    taught, output = tmp_path_factory.mktemp("taught") / "adapter", tmp_path_factory.mktemp("judged")
    shutil.copytree(models / "adapter", taught)
    FaceSnapConfig.load(taught).replace(identity_loss_recognizers=[GRID]).save(taught)
    methods = [
        "reference",
        {"kind": "facesnap", "name": "told", "adapter": str(models / "adapter")},
        {"kind": "facesnap", "name": "taught", "adapter": str(taught)},
    ]
    sampling = {**SAMPLING, "base": str(models / "base")}
    options = {"sampling": sampling, "limit": 1, "sheet_rows": 0}
    return run(astronaut, output, methods, [dlib_analyzer, GridAnalyzer()], **options), output


def test_every_recognizer_has_its_columns(judged, astronaut):
    """First the one that took no part in training; the other one is marked, in the head and where it judges its own."""
    results, _ = judged
    some = {name: results["methods"][name] for name in ("reference", "told")}
    table = markdown({**results, "methods": some}, load_benchmark("nano", astronaut))
    columns = columns_of(table)
    likeness = [title for title in columns if title.startswith(("similarity", "distance (median)", "top-1", "top-5"))]
    # dlib finds no face in what the untrained model draws
    assert likeness == [
        "similarity, tests ↑, n=1",
        "similarity, dlib† ↑, n=1",
        "distance (median), tests ↓, n=1",
        "distance (median), dlib† ↓, n=1",
        "top-1 %, tests ↑, n=1",
        "top-1 %, dlib† ↑, n=1",
        "top-5 %, tests ↑, n=1",
        "top-5 %, dlib† ↑, n=1",
    ]
    assert columns["top-1 %, dlib† ↑, n=1"] == {"reference": "**100.0**", "told": "0.0†"}
    assert columns["similarity, dlib† ↑, n=1"] == {"reference": "**1.000**", "told": "–"}
    told = scores(results, "told", f"face_similarity/{GRID}")["mean"]
    assert columns["similarity, tests ↑, n=1"] == {"reference": "**1.000**", "told": f"{told:.3f}"}
    assert (
        f"† {DLIB} took part in the training of told, by its embeddings or an identity loss, which flatters" in table
    )
    assert "judge with another one too" not in table


def test_an_identity_loss_is_told_too(judged, astronaut):
    """With it no recognizer is left that took no part, and the table advises to judge with another one."""
    results, output = judged
    assert results["methods"]["taught"]["trained_with_face_encoder_ids"] == [DLIB, GRID]
    table = (output / "results.md").read_text()
    column = columns_of(table)["top-1 %, tests† ↑, n=1"]
    assert [name for name, cell in column.items() if cell.endswith("†")] == ["taught"]
    assert f"† {GRID} took part in the training of taught," in table
    assert f"† {DLIB} took part in the training of told, taught," in table
    assert table.count("; judge with another one too.") == 2


def test_all_recognizers_are_in_the_model_index(judged):
    results, output = judged
    text, measured = read_evaluation(output, "told")
    named = {result.metric_name: result.metric_value for result in measured}
    assert [name for name in named if name.startswith(("Face similarity", "Top-1"))] == [
        f"Face similarity (cosine) by {GRID}, n=1",
        f"Top-1 retrieval (share) by {GRID}, n=1",
        f"Top-1 retrieval (share) by {DLIB} (took part in training), n=1",
    ]
    value = scores(results, "told", f"face_similarity/{GRID}")["mean"]
    assert named[f"Face similarity (cosine) by {GRID}, n=1"] == pytest.approx(value, abs=1e-4)
    assert {result.metric_type for result in measured} >= {"face_similarity", "face_distance", "top1", "no_face"}
    sampled = "Sampled for *told*: the base model's own scheduler, `DDIMScheduler`, 2 steps, guidance scale 5,"
    assert type(tiny.scheduler()).__name__ == "DDIMScheduler" and sampled in text
    text, _ = read_evaluation(output, "reference")
    assert "Sampled" not in text


def test_what_made_the_images_stays_known(judged, astronaut, models, dlib_analyzer):
    """A run that finds all images reads it from the method's file, and asks for another folder where it is not there."""
    results, output = judged
    methods = [{"kind": "facesnap", "name": "told", "adapter": str(models / "adapter")}]
    options = {"sampling": {**SAMPLING, "base": str(models / "base")}, "limit": 1, "sheet_rows": 0}
    analyzers = [dlib_analyzer, GridAnalyzer()]
    again = output.parent / "again"
    shutil.copytree(output, again)
    method = run(astronaut, again, methods, analyzers, **options)["methods"]["told"]
    assert method == results["methods"]["told"]
    path = again / "told/method.json"
    values = json.loads(path.read_text())
    del values["scheduler"]
    path.write_text(json.dumps(values))
    with pytest.raises(
        InputError, match=r"method.json does not say what made the images \('scheduler'\); name another"
    ):
        run(astronaut, again, methods, analyzers, **options)


def test_names_and_order_of_recognizers():
    ids = ["insightface/w600k_r50", DLIB, "insightface/glintr100"]
    assert short_names(ids) == {ids[0]: "w600k_r50", DLIB: "dlib", ids[2]: "glintr100"}
    assert independent_first(ids, {ids[0]}) == [DLIB, ids[2], ids[0]]
