"""A run that is killed again and again, also while it saves, ends with the bits of one that was not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_training
from test_resuming import checkpoint
from tiny_training import assert_same, train


pytestmark = pytest.mark.slow


# More with e.g. FACESNAP_TEST_KILLS=20: each takes some seconds.
KILLS = int(os.environ.get("FACESNAP_TEST_KILLS", "3"))
STEPS = 8

# Imports once and forks a child for each start of the run, which it kills: every second time while a checkpoint is written.
SCRIPT = """
import os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
from facesnap_diffusers.training.trainer import Trainer
from facesnap_diffusers.training.training_config import load_config

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
config = load_config(folder / "config.yaml")
run = Path(config.output_dir)
chance = random.Random(int(sys.argv[3]))


def start():
    child = os.fork()
    if child == 0:
        try:
            Trainer(config).train()
            os._exit(0)
        except BaseException as error:
            print(type(error).__name__, error, flush=True)
            os._exit(1)
    return child


for number in range(kills):
    child = start()
    lines = len((run / "log.txt").read_text().splitlines()) if (run / "log.txt").exists() else 0
    moment = chance.random()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        saving = (run / "checkpoint-partial").exists()
        logged = (run / "log.txt").exists() and len((run / "log.txt").read_text().splitlines()) > lines
        if number % 2 == 0 and saving:
            time.sleep(0.02 * moment)
        elif number % 2 == 1 and logged:
            time.sleep(0.5 * moment)
        else:
            time.sleep(0.001)
            continue
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print("killed" if os.WIFSIGNALED(status) else "ended", sorted(path.name for path in run.glob("checkpoint-*")), flush=True)
        break
    else:
        print("ended by itself", flush=True)
        start_over = run.with_name(f"done-{number}")
        run.rename(start_over)
_, status = os.waitpid(start(), 0)
sys.exit(os.waitstatus_to_exitcode(status))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_random_moments(base, faces, tmp_path):
    # more steps than kills at every step's checkpoint, so that the run is not at its end before the last kill
    changes = {
        "steps": STEPS + 2 * KILLS,
        "checkpoint_every": 1,
        "keep_checkpoints": 2,
        "data": {"validation": [str(faces)]},
        "validation": {"every": 3, "batches": 1, "images": 1, "inference_steps": 1},
    }
    once = train(tiny_training.config(base, faces, tmp_path / "once", **changes))
    config = tiny_training.config(base, faces, tmp_path / "run", **changes)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(KILLS), "1"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("killed") == KILLS, result.stdout
    last = f"checkpoint-{changes['steps']}"
    assert_same(checkpoint(tmp_path / "once" / last), checkpoint(tmp_path / "run" / last))
    for part in ("mixer", "ffrnet", "identity_attention"):
        name = f"adapter/{part}/diffusion_pytorch_model.safetensors"
        assert (tmp_path / "once" / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    left = [path.name for path in (tmp_path / "run").iterdir() if path.name.startswith(("checkpoint-", ".adapter"))]
    assert sorted(left) == [f"checkpoint-{changes['steps'] - 1}", last]
    assert once.progress.skipped == 0
