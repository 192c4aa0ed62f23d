"""The second judge of likeness of examples/nano: what it sees, that it learns, and what is said of pictures."""

import re
import shutil
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch


pytest.importorskip("dlib")
pytest.importorskip("cv2")
pytest.importorskip("scipy")

import check_likeness
import train_face_judge
from dataset import SEED, SHARD_PEOPLE, TO_PACKAGE, Shard
from eval_set import write_eval_set
from people.sampling import sample_person, sample_scene
from train_face_judge import FaceJudge, aligned, embed, face_judge_folder, load_face_judge

from facesnap_diffusers import nano_people
from facesnap_diffusers.nano.model import SHIPPED_NANO


pytestmark = pytest.mark.slow

PEOPLE, VIEWS = 6, 4


def test_a_face_is_seen_wherever_it_is_in_the_picture():
    people, edge = nano_people(), 40
    sides = ((edge, edge), (edge, edge), (0, 0))
    pictures = np.stack([np.pad(np.array(person.picture), sides, mode="edge") for person in people])
    landmarks = np.stack([person.identity.landmarks[:, :2].numpy() for person in people]) - TO_PACKAGE + edge
    faces = aligned(pictures, landmarks)
    moved = aligned(np.roll(pictures, (3, -4), (1, 2)), landmarks + [-4, 3])
    torch.testing.assert_close(moved, faces, atol=1e-4, rtol=0)
    torch.manual_seed(0)
    judge = FaceJudge()
    embeds = embed(judge, faces)
    torch.testing.assert_close(embeds.norm(dim=1), torch.ones(len(pictures)))
    torch.testing.assert_close(embed(judge, faces.flip(3)), embeds)


def run(module, monkeypatch, work_dir: Path, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", [module.__name__, "--work-dir", str(work_dir), *arguments])
    module.main()


@pytest.fixture(scope="module")
def work_dir(renderer, tmp_path_factory):
    """Rendered people, the same for training and to look at, with the autoencoder of the nano base."""
    folder, index = tmp_path_factory.mktemp("work"), renderer.model.expression_index
    portraits = [
        [
            renderer.render(sample_person(SEED, person), sample_scene(SEED, person, view, index))
            for view in range(VIEWS)
        ]
        for person in range(PEOPLE)
    ]
    unused = np.zeros((PEOPLE, VIEWS, 1), np.float32)
    shard = Shard(
        people=np.arange(PEOPLE),
        images=np.array([[portrait.image for portrait in views] for views in portraits]),
        landmarks=np.array([[portrait.landmarks for portrait in views] for views in portraits]),
        **dict.fromkeys(("landmarks_3d", "shape", "expression", "pose", "camera"), unused),
        attributes=[],
    )
    for split in ("train", "validation"):
        shard.save(folder / "data" / split / f"shard-{SHARD_PEOPLE:06d}.npz")
    (folder / "export").symlink_to(SHIPPED_NANO / "base")
    return folder


def test_learns_to_tell_people_apart_and_goes_on_where_it_was_stopped(work_dir, monkeypatch, capsys):
    monkeypatch.setattr(train_face_judge, "BATCH", 16)
    shares = []
    for steps in (1, 60):
        run(train_face_judge, monkeypatch, work_dir, "--steps", str(steps))
        first, *_, last = capsys.readouterr().out.strip().splitlines()
        shares.append(float(re.search(r"found first ([\d.]+)%", last)[1]))
        assert first == f"{PEOPLE * VIEWS} pictures of {PEOPLE} people, step {0 if steps == 1 else 1}"
    assert shares[0] < 80 < 90 <= shares[1]


def test_pictures_are_judged_beside_the_true_ones(work_dir, renderer, tmp_path, monkeypatch, capsys):
    torch.manual_seed(0)
    face_judge_folder(work_dir).mkdir(exist_ok=True)
    torch.save(FaceJudge().state_dict(), face_judge_folder(work_dir) / "judge.pt")
    assert not load_face_judge(work_dir).training
    write_eval_set(work_dir / "eval-set", renderer, 2, 1)
    same, without = tmp_path / "same", tmp_path / "without a face"
    for folder in (same, without):
        folder.mkdir()
        for person in ("0000", "0001"):
            shutil.copy(work_dir / "eval-set" / person / "a.png", folder / f"{person}-a.png")
    blank = PIL.Image.new("RGB", (128, 128))
    for path in without.iterdir():
        blank.save(path)
    run(check_likeness, monkeypatch, work_dir, str(same), str(without))
    true, drawn, nobody = capsys.readouterr().out.strip().splitlines()
    assert drawn.split(": ")[1] == true.split(": ")[1] != nobody.split(": ")[1]
    assert nobody.split(": ")[1] == "distance 1.000, first 0.0%, among five 0.0%"


def test_ranks_by_the_distance_to_the_own_person():
    references = torch.eye(3)
    embeds = torch.tensor([[1.0, 0, 0], [0.8, 0.6, 0], [0.6, 0.8, 0]])
    distances, ranks = check_likeness.likeness(embeds, torch.tensor([0, 0, 0]), references)
    torch.testing.assert_close(distances, torch.tensor([0.0, 0.2, 0.4]))
    assert ranks.tolist() == [0, 0, 1]
