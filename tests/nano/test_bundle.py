"""What `bundle.py` puts into the package, from an untrained model."""

import json

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file


pytest.importorskip("scipy", reason="the renderer needs scipy")
pytest.importorskip("cv2", reason="the renderer needs opencv")
pytest.importorskip("moderngl", reason="the renderer needs moderngl")

import bundle
from dataset import SEED
from eval_set import landmarks, scenes
from people.sampling import sample_person

from facesnap_diffusers import load_nano_pipeline, nano_people


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    tiny.write_nano(folder)
    config = folder / "adapter/facesnap_config.json"
    values = json.loads(config.read_text())
    config.write_text(json.dumps({**values, "base_model": str(folder / "base")}))
    unet = folder / "base/unet/config.json"
    unet.write_text(json.dumps({**json.loads(unet.read_text()), "_name_or_path": str(folder)}))
    return folder


def test_bundle(renderer, made, tmp_path):
    output = tmp_path / "nano"
    sizes = bundle.bundle(made / "base", made / "adapter", [3, 8], renderer, output)
    files = [path for path in output.rglob("*") if path.is_file()]
    assert sum(sizes.values()) == pytest.approx(sum(path.stat().st_size for path in files) / 1e6)
    assert not [path for path in files if path.suffix == ".json" and str(made) in path.read_text()]
    saved = [path for path in files if path.suffix == ".safetensors" and path.parent.name != "people"]
    weights = {path.relative_to(output).parent.as_posix(): load_file(path) for path in saved}
    adapter = ["mixer", "identity_attention", "ffrnet", "image_encoder"]
    assert {f"adapter/{part}" for part in adapter} < set(weights)
    assert "adapter/landmark_predictor" not in weights
    for part in adapter:
        assert all(not t.is_floating_point() or t.dtype == torch.float16 for t in weights[f"adapter/{part}"].values())

    pipe = load_nano_pipeline(output)
    people = nano_people(output)
    assert [person.name for person in people] == ["person-03", "person-08"]
    embeds = pipe.encode_face(people[0].picture).face_embeds
    torch.testing.assert_close(people[0].identity.face_embeds, embeds)
    person = sample_person(SEED, 3)
    points = landmarks(renderer.model, person, next(scenes(renderer.model, 3, person, renderer.size)), renderer.size)
    torch.testing.assert_close(people[0].identity.landmarks, torch.from_numpy(points).float())
    again = pipe.encode_face(people[0].picture, embedding=embeds, landmarks=points)
    torch.testing.assert_close(people[0].identity.image_hidden_states, again.image_hidden_states)


def test_too_large_a_bundle_is_not_written(renderer, made, tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "LIMIT_MB", 0.1)
    with pytest.raises(SystemExit, match="nothing is written"):
        bundle.bundle(made / "base", made / "adapter", [], renderer, tmp_path / "nano")
    assert not list(tmp_path.iterdir())


def test_people_are_varied():
    people = [sample_person(bundle.SEED, index).attributes for index in bundle.varied_people(6)]
    first = [sample_person(bundle.SEED, index).attributes for index in range(6)]
    for name in ("skin", "hair_style", "hair_color"):
        assert len({person[name] for person in people}) >= 4
    assert np.mean([len({p[n] for p in people}) for n in bundle.VARIED]) > np.mean(
        [len({p[n] for p in first}) for n in bundle.VARIED]
    )
