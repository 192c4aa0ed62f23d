"""examples/ten_people.py runs from photos to a repo for the Hub, with fewer people and steps."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from facesnap_diffusers import load_nano_pipeline


pytestmark = pytest.mark.slow

SCRIPT = Path(__file__).parents[2] / "examples/ten_people.py"


def test_from_photos_to_a_repo(tmp_path):
    pytest.importorskip("openpeople")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, SCRIPT, "--people=2", "--steps=2"], cwd=tmp_path, env=environment, check=True, timeout=600
    )
    assert "| after |" in (tmp_path / "results/results.md").read_text()
    card = (tmp_path / "run/adapter/README.md").read_text()
    assert "model-index" in card and str(tmp_path) not in card
    assert "load_nano_pipeline()" in card and "a-base-model" not in card
    assert (tmp_path / "P001.png").is_file()
    load_nano_pipeline().load_facesnap_adapter(tmp_path / "run/adapter")
