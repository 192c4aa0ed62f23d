"""The benchmarks' cases from tiny data, and what is wrong with damaged data."""

import json
import shutil

import PIL.Image
import pytest

from facesnap_diffusers import HeadPose, InputError
from facesnap_diffusers.evaluation.benchmarks import load_benchmark
from facesnap_diffusers.evaluation.benchmarks.unsplash50 import EDITING_PROMPTS, SIMILARITY_PROMPT


def test_unsplash50(tmp_path):
    for name in ("one.jpg", "sub/two.png", "ß é.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        PIL.Image.new("RGB", (32, 32)).save(tmp_path / name)
    (tmp_path / "readme.txt").write_text("no photo")
    benchmark = load_benchmark("unsplash50", tmp_path, seed=10)
    assert len(EDITING_PROMPTS) == len(set(EDITING_PROMPTS)) == 20
    assert len(benchmark.cases) == 3 * 21 * 4 == len({case.id for case in benchmark.cases})
    assert [case.seed for case in benchmark.cases] == list(range(10, 10 + 252))
    similarity = [case for case in benchmark.cases if case.group == "similarity"]
    assert {case.prompt for case in similarity} == {SIMILARITY_PROMPT}
    assert len(similarity) == 12
    limited = benchmark.limit(5)
    assert len(limited.cases) == 5
    assert len({case.person for case in limited.cases}) == 3
    assert set(limited.cases) <= set(benchmark.cases)


def test_multi_id_bench(tmp_path):
    images = tmp_path / "v200_single" / "untar"
    images.mkdir(parents=True)
    for name in ("0001.jpg", "0001_1.jpg"):
        PIL.Image.new("RGB", (32, 32)).save(images / name)
    entry = {"prompt": "a man", "image_paths": ["0001_1.jpg"], "ori_img_path": "0001.jpg"}
    (tmp_path / "v200_single.json").write_text(json.dumps([entry]))
    (case,) = load_benchmark("multi_id_bench", tmp_path).cases
    assert (case.prompt, case.reference, case.ground_truth) == ("a man", (images / "0001_1.jpg",), images / "0001.jpg")
    (images / "0001.jpg").unlink()
    with pytest.raises(InputError, match="0001.jpg"):
        load_benchmark("multi_id_bench", tmp_path)


def test_nano(people):
    benchmark = load_benchmark("nano", people)
    case = benchmark.cases[1]
    assert (case.id, case.seed, case.pose) == ("astronaut-1", 1, HeadPose(yaw=15.0))
    assert load_benchmark("nano", people, 7).cases[1].seed == 8
    assert case.expression.weights == {"jawOpen": 0.5}
    assert case.is_steered
    assert len(case.driving_landmarks) == 72


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 1}, "version 2"),
        ({"cases": []}, "no cases"),
        ({"cases": None}, "no cases"),
        ({"people": []}, "no people"),
        ({"cases": [{"id": "x", "person": "a"}]}, "prompt"),
        ({"cases": [{"id": "x", "person": "nobody", "prompt": ""}]}, "nobody"),
        ({"cases": [{"id": "x", "person": "a", "prompt": "", "ground_truth": "none.png"}]}, "none.png"),
        ({"cases": [{"id": "x", "person": "a", "prompt": "", "pose": [0, 0, 0, 0]}]}, "case 0"),
        ({"cases": [{"id": "x", "person": "a", "prompt": "", "pose": [200, 0, 0]}]}, "yaw"),
        ({"cases": [{"id": "x", "person": "a", "prompt": "", "smile": 1}]}, "smile"),
        ({"cases": [{"id": "x", "person": "a", "prompt": "", "driving_landmarks": [[0, 0]]}]}, "72"),
        ({"cases": [{"id": "../x", "person": "a", "prompt": ""}]}, "id"),
        ({"cases": [{"id": "x", "person": "a", "prompt": ""}] * 2}, "two cases 'x'"),
    ],
)
def test_nano_says_what_is_wrong(people, tmp_path, change, message):
    manifest = json.loads((people / "manifest.json").read_text())
    for name in ("astronaut", "a", "b"):
        (tmp_path / name).symlink_to(people / name)
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, **change}))
    with pytest.raises(InputError, match=message) as caught:
        load_benchmark("nano", tmp_path)
    assert "\n" not in str(caught.value)


def test_nano_landmarks_are_of_a_reference_that_is_read_as_it_is(people, tmp_path):
    data = shutil.copytree(people, tmp_path / "people")
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["people"]["a"]["landmarks"] = manifest["cases"][0]["driving_landmarks"]
    (data / "manifest.json").write_text(json.dumps(manifest))
    assert load_benchmark("nano", data).cases
    PIL.Image.new("RGB", (2049, 32)).save(data / "a/reference.png")
    with pytest.raises(InputError, match="person a has landmarks, in a reference of more than 2048 px"):
        load_benchmark("nano", data)
    (data / "a/reference.png").write_bytes(b"no picture")
    with pytest.raises(InputError, match="reference.png cannot be read .*; make the folder again"):
        load_benchmark("nano", data)


def test_what_is_not_there(tmp_path):
    for name, match in (("nano", "manifest"), ("unsplash50", "no images"), ("multi_id_bench", "hf2bench")):
        with pytest.raises(InputError, match=match):
            load_benchmark(name, tmp_path)
    with pytest.raises(InputError, match="choose one of"):
        load_benchmark("other", tmp_path)
    with pytest.raises(InputError, match="not a folder"):
        load_benchmark("nano", tmp_path / "nowhere")
