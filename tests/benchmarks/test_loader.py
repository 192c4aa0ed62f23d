"""The benchmark of the loader makes the samples that a run trains on."""

import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_samples_are_those_of_a_run(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).resolve().parents[2] / "benchmarks")])
    import loader

    loader.write_faces(tmp_path, side=64, people=1)
    samples = loader.make_samples(tmp_path, side=64)
    assert {min(samples.faces[index].info["size"]) for index in range(2)} == {84}  # 1.3 times 64
    sample = samples[0]
    assert sample["pixel_values"].shape == (3, 64, 64) and sample["clip_crop"].shape == (3, 224, 224)
    assert {"landmarks", "noise", "encoder_noise", "timestep", "face_embeds"} <= sample.keys()
    seconds = loader.measure(samples, batches=2, batch=2)
    assert len(seconds) == 2 and min(seconds) > 0
