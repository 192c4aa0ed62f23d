"""What examples/nano says of the pictures that `facesnap eval` made."""

import json
import re
import sys
from functools import partial

import pytest
import torch


pytest.importorskip("dlib")
pytest.importorskip("cv2")
pytest.importorskip("scipy")

import check_pictures
from eval_set import write_eval_set
from train_judge import Judge, judge_folder
from wide_eval_set import turned_scenes


@pytest.fixture(scope="module")
def work_dir(renderer, tmp_path_factory):
    """A small evaluation set, one of turned heads, and a judge that knows nothing yet."""
    folder = tmp_path_factory.mktemp("work")
    write_eval_set(folder / "eval-set", renderer, 2, 2)
    write_eval_set(folder / "eval-yaw", renderer, 2, 1, partial(turned_scenes, "yaw"))
    torch.manual_seed(0)
    judge_folder(folder).mkdir()
    torch.save(Judge().state_dict(), judge_folder(folder) / "judge.pt")
    return folder


@pytest.mark.parametrize(("name", "letters"), [("eval-set", "ab"), ("eval-yaw", "a")])
def test_pictures_are_judged_beside_the_true_ones(work_dir, tmp_path, monkeypatch, capsys, name, letters):
    results, rows = tmp_path / "FaceSnap", []
    results.mkdir()
    for person in ("0000", "0001"):
        for letter in letters:
            picture = (work_dir / name / person / f"{letter}.png").read_bytes()
            (results / f"{person}-{letter}.png").write_bytes(picture)
            rows.append({"case": f"{person}-{letter}", "person": person, "top1": float(person == "0000")})
    (results / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["check_pictures.py", str(results), "--work-dir", str(work_dir), "--eval-set", str(work_dir / name)]
    monkeypatch.setattr(sys, "argv", arguments)
    check_pictures.main()
    true, true_again, drawn, as_true = capsys.readouterr().out.strip().splitlines()
    assert true_again == as_true and as_true.count("100.0%") == 8
    shares = [re.findall(r"([a-z ]+) ([\d.]+)%", line.split("; outline")[0].split(": ")[1]) for line in (true, drawn)]
    assert shares[0] == shares[1] and len(shares[0]) == 8  # the pictures are the true ones
    outline = float(re.search(r"outline ([\d.]+)", drawn)[1])
    assert 0 <= outline <= 1 and f"outline {outline:.3f}" in true
    assert "first by skin" in drawn and "50.0% of" in drawn and "first by skin" not in true
