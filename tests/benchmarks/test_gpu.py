"""The script for GPUs runs on a CPU with tiny nets, and its checks hold there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
@pytest.mark.skipif("FACESNAP_TEST_ALL" not in os.environ, reason="takes a minute and a half; set FACESNAP_TEST_ALL=1")
def test_runs_on_the_cpu():
    command = [sys.executable, str(ROOT / "benchmarks/gpu.py"), "--device", "cpu", "--tiny", "--minutes", "60"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr[-2000:] + result.stdout
    lines = result.stdout.splitlines()
    checks = [line for line in lines if " FFRNet: " in line or line.startswith("| drawing")]
    assert len(checks) == 1 + 2 * 8 and "FAILED" not in result.stdout and "left out" not in result.stdout
    for row in ("plain", "both", "FaceSnap exact", "FaceSnap fast, small FFRNet", "sd15-1", "sdxl-2"):
        assert sum(line.startswith(f"| {row} |") for line in lines) == (1 if row.startswith("sd") else 2), row
