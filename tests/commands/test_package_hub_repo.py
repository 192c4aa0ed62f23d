"""FaceSnap from a Hub repo with code: `custom_pipeline=`, from a folder and from a Hub on the loopback interface."""

import re

import PIL.Image
import pytest
import tiny
from command_line import command
from diffusers import DiffusionPipeline
from huggingface_hub import ModelCard
from skimage.data import astronaut

from facesnap_diffusers import FaceSnapPipeline, FaceSnapXLPipeline, InputError


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


def test_model_card(tmp_path):
    pipe = tiny.facesnap(tiny.sd_pipeline())
    tiny.add_adapter(pipe)
    pipe.save_facesnap_adapter(tmp_path)
    readme = tmp_path / "README.md"
    first = readme.read_text()
    readme.write_text(re.sub("<!-- Say what.*-->", "On 5 photos of a cat.", first))
    assert readme.read_text() != first
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
    for part in ("On 5 photos of a cat.", "## Use", "## Intended use and limits", "agreed to it", "custom_pipeline="):
        assert part in card.text


def test_the_snippets_of_the_card_run(packaged, tmp_path, monkeypatch):
    adapter, base, cls, _ = packaged
    monkeypatch.chdir(tmp_path)
    PIL.Image.fromarray(astronaut()).save("photo.jpg")
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


def test_repo_names_are_checked(tmp_path):
    with pytest.raises(InputError, match="owner/name"):
        command("package-hub-repo", tmp_path, "--repo-id", "facesnap")
