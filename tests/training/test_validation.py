"""What a run is judged by: sampled pictures of the validation people, by an analyzer that took no part in training."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import tiny
import tiny_training
import torch
from evaluation_fixtures import clip_folder  # noqa: F401
from tiny_training import reset_accelerate, train
from transformers import CLIPModel, CLIPProcessor

from facesnap_diffusers import Face
from facesnap_diffusers.errors import InputError
from facesnap_diffusers.training import trainer as trainer_module
from facesnap_diffusers.training import validation
from facesnap_diffusers.training.trainer import Trainer
from facesnap_diffusers.training.validation import load_judge, one_of_each_person, validation_likeness


class MeanColor:
    """Finds a face in every picture that is not black, 3 pixels to the right of where it is; its embedding is the mean color."""

    encoder, embedding_dim = "test/mean-color", 3

    def analyze(self, image):
        if image.max() < 30:
            return []
        points = np.column_stack([tiny.face_points() * 0.3, np.zeros(68)])[:, :2]
        box = np.array([*points.min(axis=0), *points.max(axis=0)])
        return [Face(image, box, points, image.mean(axis=(0, 1)) + 1, 1.0, self.encoder)]


def judged(base, faces, folder, judge="test_validation:MeanColor", clip_model=None, **changes):
    validation = {
        "judge": judge, "clip_model": clip_model, "people": 3, "every": 2, "images": 0, "batches": 0
    }  # fmt: skip
    return tiny_training.config(
        base, faces, folder, data={"validation": [str(faces)]}, validation=validation, **changes
    )


def test_likeness_is_of_sampled_pictures(base, faces, tmp_path, monkeypatch):
    reset_accelerate()
    run = Trainer(judged(base, faces, tmp_path))
    samples, config = run.validation_samples, run.config.validation
    positions = one_of_each_person(samples, 10)
    people = [samples.faces.person[samples.photo(position)] for position in positions]
    assert len(people) == len(set(people)) == 4  # of four people, whatever is asked for

    pictures = {}

    def picture(objective, batch, config, seed):
        size = tiny_training.SIZE
        pictures[seed] = (
            np.full((size, size, 3), (200, 40, 40), np.uint8)
            if len(pictures) < 2
            else np.zeros_like(next(iter(pictures.values())))
        )
        return pictures[seed]

    monkeypatch.setattr("facesnap_diffusers.training.validation.sample_picture", picture)
    found = validation_likeness(run.objective, samples, config, run.judge, seed=5)
    unit = np.array([201, 41, 41]) / np.linalg.norm([201, 41, 41])
    distances, points = [], []
    for position in positions[:2]:
        sample = samples[position]
        truth = (sample["pixel_values"] / 2 + 0.5).mul(255).round().numpy().mean(axis=(1, 2)) + 1
        distances.append(np.linalg.norm(unit - truth / np.linalg.norm(truth)))
        wanted = sample["landmarks"][:68].numpy()
        offset = np.linalg.norm(tiny.face_points() * 0.3 - wanted, axis=1).mean()
        points.append(offset / np.linalg.norm(wanted[45] - wanted[36]))
    assert found["faces_found"] == pytest.approx(2 / 3) and found["points"] == pytest.approx(np.mean(points), rel=1e-5)
    assert found["face_distance"] == pytest.approx((sum(distances) + 2) / 3, rel=1e-4)
    assert list(pictures) == [5 + position for position in positions[:3]]


def test_clip_t_is_what_the_model_itself_says(base, faces, clip_folder, tmp_path, monkeypatch):  # noqa: F811
    """The cosines that CLIP's own forward gives for the sampled pictures and the prompts that they were made for."""
    run = Trainer(judged(base, faces, tmp_path, clip_model=clip_folder, judge=None))
    samples, config = run.validation_samples, run.config.validation
    pictures = []

    def picture(*arguments):
        pictures.append(sample_picture(*arguments))
        return pictures[-1]

    sample_picture = validation.sample_picture
    monkeypatch.setattr(validation, "sample_picture", picture)
    model, processor = CLIPModel.from_pretrained(clip_folder), CLIPProcessor.from_pretrained(clip_folder)
    for prompt in (None, "a portrait"):
        pictures.clear()
        config = dataclasses.replace(config, prompt=prompt)
        found = validation_likeness(run.objective, samples, config, None, 5, run.clip)
        captions = [prompt or samples[position]["caption"] for position in one_of_each_person(samples, 3)]
        images = [PIL.Image.fromarray(picture) for picture in pictures]
        inputs = processor(text=captions, images=images, return_tensors="pt", padding=True, truncation=True)
        with torch.no_grad():
            cosines = model(**inputs).logits_per_image.diagonal() / model.logit_scale.exp()
        assert len(images) == 3 and set(found) == {"clip_t"}
        assert found["clip_t"] == pytest.approx(cosines.mean().item(), abs=1e-5) and abs(found["clip_t"]) > 1e-3


def test_clip_t_stands_beside_what_the_judge_says(base, faces, clip_folder, tmp_path):  # noqa: F811
    done = train(judged(base, faces, tmp_path, steps=2, clip_model=clip_folder))
    names = {f"validation/{name}" for name in ("clip_t", "face_distance", "faces_found", "points")}
    assert names <= done.results.keys()
    card, log = ((tmp_path / name).read_text() for name in ("adapter/README.md", "log.txt"))
    assert f"| validation/clip_t | {done.results['validation/clip_t']:.4f} |" in card and "validation/clip_t" in log
    assert f"clip_model: {Path(clip_folder).name}" in card  # no folder of this machine


def test_a_wrong_clip_model(base, faces, tmp_path):
    with pytest.raises(InputError, match="validation.clip_model 'none/such' could not be loaded"):
        Trainer(judged(base, faces, tmp_path, clip_model="none/such"))


def test_people_on_both_sides_are_named(base, faces, tmp_path, caplog):
    tiny_training.write_faces(tmp_path / "other", people=2)
    Trainer(tiny_training.config(base, faces, tmp_path / "run", data={"validation": [str(tmp_path / "other")]}))
    (record,) = [record for record in caplog.records if "data.validation" in record.message]
    same = (
        f"{tmp_path / 'other'}: person0 is {faces}: person0, {tmp_path / 'other'}: person1 is {faces}: person1; leave"
    )
    assert same in record.message and "\n" not in record.message


def test_the_best_adapter_is_kept(base, faces, tmp_path, monkeypatch):
    """Of three validations the second is the best: that adapter, with its card, stays when the third one is worse."""
    distances = iter([0.9, 0.4, 0.6])
    found = []

    def likeness(objective, *arguments):
        found.append(objective.pipeline.mixer.face_proj.weight.detach().clone())
        return {"face_distance": next(distances), "faces_found": 1.0}

    monkeypatch.setattr(trainer_module, "validation_likeness", likeness)
    done = train(judged(base, faces, tmp_path, steps=6))
    assert done.progress.best == 0.4 and done.results["validation/face_distance"] == 0.6
    best = tiny.facesnap(tiny.sd_pipeline())
    best.load_facesnap_adapter(tmp_path / "best")
    assert (best.mixer.face_proj.weight == found[1]).all() and not (found[1] == found[2]).all()
    card = (tmp_path / "best/README.md").read_text()
    assert "| steps | 4 |" in card and "| validation/face_distance | 0.4000 |" in card
    card = (tmp_path / "adapter/README.md").read_text()
    assert "| steps | 6 |" in card and "| validation/face_distance | 0.6000 |" in card


def test_measured_in_a_run(base, faces, tmp_path):
    done = train(judged(base, faces, tmp_path, steps=2))
    assert 0 < done.results["validation/face_distance"] <= 2 and (tmp_path / "best/mixer").is_dir()
    assert json.loads((tmp_path / "time.json").read_text())["seconds"] > 0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nobody", "is not one of"),
        ("no_such_module:function", "cannot be imported"),
        ("builtins:dict", "returned dict; it must return a FaceAnalyzer"),
    ],
)
def test_a_wrong_judge(name, message):
    with pytest.raises(InputError, match=message):
        load_judge(name)
