"""FaceSnap from a Hub repo with code: `custom_pipeline=`, from a folder and from a Hub on the loopback interface."""

import json
import re

import PIL.Image
import pytest
import tiny
from command_line import command
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from skimage import data as photos

from facesnap_diffusers import AutoFaceSnapPipeline, FaceSnapPipeline, FaceSnapXLPipeline, InputError, NoFaceFoundError


BASES = {"sd": (tiny.sd_pipeline, FaceSnapPipeline), "xl": (tiny.xl_pipeline, FaceSnapXLPipeline)}


pytestmark = [pytest.mark.usefixtures("modules_cache"), pytest.mark.slow]


@pytest.fixture(params=BASES)
def packaged(request, tmp_path):
    """A packaged adapter folder, a base model's folder, the class, and the image that they should give."""
    make, cls = BASES[request.param]
    pipe = tiny.facesnap(make())
    tiny.add_adapter(pipe)
    pipe.save_facesnap_adapter(tmp_path / "adapter")
    make().save_pretrained(tmp_path / "base")
    command("package-hub-repo", tmp_path / "adapter", "--repo-id", f"someone/facesnap-{request.param}")
    return tmp_path / "adapter", tmp_path / "base", cls, tiny.generate(pipe, identity=tiny.identity())


def image_of(pipe, adapter):
    pipe.set_progress_bar_config(disable=True)
    pipe.load_facesnap_adapter(adapter)
    return tiny.generate(pipe, identity=tiny.identity())


def test_custom_pipeline_from_a_folder(packaged):
    adapter, base, cls, expected = packaged
    pipe = DiffusionPipeline.from_pretrained(base, custom_pipeline=str(adapter), trust_remote_code=True)
    assert isinstance(pipe, cls) and type(pipe).__name__ == "FaceSnapHubPipeline"
    tiny.assert_same_image(image_of(pipe, adapter), expected, atol=1e-5)


def test_custom_pipeline_from_a_hub(packaged, hub, tmp_path):
    adapter, base, cls, expected = packaged
    repo_id = "someone/facesnap-xl" if cls is FaceSnapXLPipeline else "someone/facesnap-sd"
    hub.add_folder(repo_id, adapter)
    cache = {"cache_dir": tmp_path / "cache"}
    pipe = DiffusionPipeline.from_pretrained(base, custom_pipeline=repo_id, trust_remote_code=True, **cache)
    assert isinstance(pipe, cls)
    assert any("pipeline.py" in request for request in hub.requests)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_facesnap_adapter(repo_id, **cache)
    tiny.assert_same_image(tiny.generate(pipe, identity=tiny.identity()), expected, atol=1e-5)


def test_code_does_not_run_without_trust(packaged):
    adapter, base, *_ = packaged
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(base, custom_pipeline=str(adapter))


def base_model_files(**changes):
    """What tells a base model's family: the config of its UNet."""
    return {"unet/config.json": json.dumps(dict(tiny.sd_unet(**changes).config)).encode()}


@pytest.fixture
def adapter(tmp_path):
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    pipe.save_facesnap_adapter(tmp_path / "adapter")
    return tmp_path / "adapter"


def files_of(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_model_card(tmp_path, hub, hub_cache):
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    pipe.save_facesnap_adapter(tmp_path)
    readme = tmp_path / "README.md"
    first = readme.read_text()
    readme.write_text(re.sub("<!-- Say what.*-->", "On 5 photos of a cat.", first))
    assert readme.read_text() != first
    hub.add_commit("someone/base", base_model_files())
    options = ["--base-model", "someone/base", "--license", "apache-2.0", "--dataset", "someone/a", "--dataset", "b/c"]
    command("package-hub-repo", tmp_path, "--repo-id", "someone/facesnap", *options)
    card = ModelCard.load(readme)
    data = card.data.to_dict()
    expected = {
        "base_model": "someone/base",
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "license": "apache-2.0",
        "datasets": ["someone/a", "b/c"],
    }
    assert {name: data[name] for name in expected} == expected
    assert "facesnap" in data["tags"] and data["widget"][0]["text"]
    assert 'load_facesnap_adapter("someone/facesnap")' in card.text
    parts = ("On 5 photos of a cat.", "## Use", "## Intended use and limits", "agreed to it", "custom_pipeline=")
    for part in (*parts, 'pip install "facesnap-diffusers[dlib]"', "| scales | identity 1, landmark 1 |"):
        assert part in card.text


def test_the_repos_name_is_all_that_the_snippet_takes(packaged, hub, hub_cache, tmp_path, monkeypatch):
    """Pasted as the card has it, against a Hub with the adapter and its base model."""
    adapter, base, cls, _ = packaged
    repo_id = "someone/facesnap-xl" if cls is FaceSnapXLPipeline else "someone/facesnap-sd"
    hub.add_folder("someone/base", base)
    command("package-hub-repo", adapter, "--repo-id", repo_id, "--base-model", "someone/base")
    hub.add_folder(repo_id, adapter)
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(photos.astronaut()).save("photo.jpg")
    snippet = re.findall("```py\n(.*?)```", (adapter / "README.md").read_text(), re.DOTALL)[0]
    assert f'AutoFaceSnapPipeline.from_pretrained("{repo_id}")' in snippet and "someone/base" not in snippet
    scope: dict = {}
    exec(snippet, scope)
    assert isinstance(scope["pipe"], cls) and scope["image"].size == (64, 64)
    assert scope["pipe"].facesnap_config.base_model == "someone/base"


def test_an_adapter_without_a_base_model_is_not_loaded_by_its_name(adapter):
    with pytest.raises(InputError, match=r"does not say which one; load a base model"):
        AutoFaceSnapPipeline.from_pretrained(adapter)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (base_model_files(cross_attention_dim=48), "is of family custom-48, the adapter is for custom-32"),
        ({"config.json": b"{}"}, "could not be checked"),
        (None, "could not be checked"),
    ],
    ids=["family", "another kind", "absent"],
)
def test_the_base_model_is_checked(files, message, adapter, hub, hub_cache):
    before = files_of(adapter)
    if files is not None:
        hub.add_commit("someone/base", files)
    with pytest.raises(InputError, match=message):
        command("package-hub-repo", adapter, "--repo-id", "someone/facesnap", "--base-model", "someone/base")
    assert files_of(adapter) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--prompt", "a queen"], "--prompt has no effect: it is about pictures of a --photo"),
        (["--device", "cpu"], "--device has no effect: it is about pictures of a --photo"),
        (["--seed", 0], "--seed has no effect"),
        (["--method", "mine"], "--method has no effect: it is a row of --results"),
        (["--base-model", "."], r"--base-model \. is a folder of this machine"),
    ],
)
def test_what_has_no_effect_or_would_tell_a_path_is_refused(options, message, adapter):
    before = {path: path.read_bytes() for path in adapter.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=message):
        command("package-hub-repo", adapter, "--repo-id", "someone/facesnap", *options)
    assert {path: path.read_bytes() for path in adapter.rglob("*") if path.is_file()} == before


def test_pictures(adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.sd_pipeline().save_pretrained("someone/base")
    PIL.Image.fromarray(photos.astronaut()).save("photo.jpg")
    package = ["package-hub-repo", adapter, "--repo-id", "someone/facesnap"]
    with pytest.raises(InputError, match="--photo needs a base model"):
        command(*package, "--photo", "photo.jpg")
    command(*package, "--base-model", "someone/base", "--photo", "photo.jpg", "--prompt", "a cat", "--steps", 1)
    card = ModelCard.load(adapter / "README.md").text
    _, _, pictures = card.partition("## Pictures\n")
    pictures, _, _ = pictures.partition("## Use")
    assert "](pictures.jpg)" in pictures and "on `someone/base`" in pictures
    assert (
        "`DDIMScheduler`, 1 steps, guidance scale 5," in pictures
        and "landmark scale 1, 64 × 64 px, seed 0" in pictures
    )
    assert "1. a cat" in pictures
    with PIL.Image.open(adapter / "pictures.jpg") as grid:
        # reference, one prompt, two turned heads, two expressions, the base alone: seven columns of two pictures
        assert grid.width > 7 * 128 and grid.height > 2 * 128
    made = files_of(adapter)
    assert "the model card has no evaluation" in command(*package).output
    assert files_of(adapter) == made  # packaged again, with what the card had


def test_a_photo_without_a_face_is_named(adapter, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.sd_pipeline().save_pretrained("someone/base")
    PIL.Image.new("RGB", (64, 64)).save("wall.png")
    before = files_of(adapter)
    options = ["--base-model", "someone/base", "--photo", "wall.png"]
    with pytest.raises(NoFaceFoundError, match=r"wall\.png"):
        command("package-hub-repo", adapter, "--repo-id", "someone/facesnap", *options)
    assert files_of(adapter) == before


def test_results_of_an_evaluation(adapter, astronaut, models, tmp_path):
    method = f"facesnap:adapter={adapter},landmark_scale=0.5"
    options = ["--base", models / "base", "--steps", 1, "--sheet-rows", 0, "--limit", 1]
    command(
        "eval", "--benchmark", "nano", "--data", astronaut, "--output", tmp_path / "out", "--method", method, *options
    )
    command("package-hub-repo", adapter, "--repo-id", "someone/facesnap", "--results", tmp_path / "out")
    card = ModelCard.load(adapter / "README.md")
    metrics = json.loads((tmp_path / "out/results.json").read_text())["methods"]["facesnap"]["groups"]["all"]
    measured = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert {"top1", "no_face"} <= set(measured)
    assert measured["top1"] == metrics["top1"]["mean"]
    assert {result.dataset_name for result in card.data.eval_results} == {"nano"}
    assert card.data.model_name == "facesnap"
    assert (
        "| facesnap |" in card.text and "1 steps, guidance scale 5, identity scale 1, landmark scale 0.5" in card.text
    )
    with pytest.raises(InputError, match="'other' was not evaluated; choose one of facesnap"):
        command("package-hub-repo", adapter, "--repo-id", "a/b", "--results", tmp_path / "out", "--method", "other")
    with pytest.raises(InputError, match="does not contain the results of an evaluation"):
        command("package-hub-repo", adapter, "--repo-id", "a/b", "--results", tmp_path)


def test_the_snippets_of_the_card_run(packaged, tmp_path, monkeypatch):
    adapter, base, cls, _ = packaged
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(photos.astronaut()).save("photo.jpg")
    text = (adapter / "README.md").read_text()
    names = {"a-base-model-of-this-family": base, "someone/facesnap-xl": adapter, "someone/facesnap-sd": adapter}
    for name, folder in names.items():
        text = text.replace(f'"{name}"', f'"{folder}"')
    text = text.replace("face_image=", "num_inference_steps=1, face_image=")
    first, second = re.findall("```py\n(.*?)```", text, re.DOTALL)
    for snippet in (first, second):
        scope: dict = {}
        exec(snippet, scope)
        assert isinstance(scope["pipe"], cls) and scope["pipe"].facesnap_config is not None
        if snippet is first:
            assert scope["image"].size == (64, 64)


@pytest.mark.parametrize("name", ["facesnap", "a/b/c", "a/", "/b", 'a/b"; import os', "a/b--c", "a/b\nc"])
def test_repo_names_are_checked(name, tmp_path):
    with pytest.raises(InputError, match="owner/name|cannot be a name on the Hub") as caught:
        command("package-hub-repo", tmp_path, "--repo-id", name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "card", [b"\xff\xfe", b"---\na: [\n---\n", b"---\n- a\n---\n", b"---\nmodel-index: 5\n---\n", b"---\n1: 2\n---\n"]
)
def test_a_damaged_card_is_named(card, adapter):
    (adapter / "README.md").write_bytes(card)
    before = files_of(adapter)
    with pytest.raises(
        InputError, match=r"model card .*README.md cannot be read .*; correct it or remove it"
    ) as caught:
        command("package-hub-repo", adapter, "--repo-id", "a/b")
    assert "\n" not in str(caught.value) and files_of(adapter) == before
