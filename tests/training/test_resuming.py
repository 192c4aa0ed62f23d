"""Runs that are stopped, and runs in several processes, equal those that are not, bit for bit or nearly."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny_training
import torch
from safetensors.torch import load_file
from test_samples import people_of_all_sizes  # noqa: F401
from tiny_training import assert_same, train

from facesnap_diffusers.training.trainer import Trainer


pytestmark = pytest.mark.slow


def checkpoint(folder):
    """All that a checkpoint of one process holds: weights, optimizer, step, schedule, EMA, random state."""
    found = {path.name: load_file(path) for path in Path(folder).glob("*.safetensors")}
    for path in [*Path(folder).glob("*.bin"), *Path(folder).glob("*.pkl")]:
        found[path.name] = torch.load(path, weights_only=False)
    return found


@pytest.mark.parametrize(
    ("half", "changes"),
    [(10, {"gradient_accumulation": 2, "batch_size": 1}), (2, {"data": {"crops": 2}}), (2, "balanced")],
)
def test_resume_is_exact(base, faces, people_of_all_sizes, tmp_path, half, changes):  # noqa: F811
    if changes == "balanced":
        changes = {"data": {"balanced": True, "shards": people_of_all_sizes}}
    changes = {"steps": 2 * half, "checkpoint_every": half, **changes}
    train(tiny_training.config(base, faces, tmp_path / "once", **changes))

    first = tiny_training.config(base, faces, tmp_path / "twice", **changes)
    stopped = tiny_training.train_to_first_checkpoint(first)
    assert stopped.progress.step == half
    torch.manual_seed(123)  # what happens between must not matter
    np.random.seed(123)
    train(first)

    once, twice = (checkpoint(tmp_path / name / f"checkpoint-{2 * half}") for name in ("once", "twice"))
    assert {"model.safetensors", "optimizer.bin", "random_states_0.pkl"} <= once.keys()
    assert len([name for name in once if name.startswith("custom_checkpoint")]) == 3
    assert_same(once, twice)
    halfway = checkpoint(tmp_path / f"once/checkpoint-{half}")
    assert not torch.equal(*(state["model.safetensors"]["parts.mixer.face_proj.weight"] for state in (halfway, once)))


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs the trainer in two processes, as a user does."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]),
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
    }

    def start(path):
        launch = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
        return subprocess.Popen(
            [sys.executable, *launch, "-m", "facesnap_diffusers.training", str(path)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    return start


def test_two_processes_equal_one_with_twice_the_batch(base, faces, people_of_all_sizes, tmp_path, command):  # noqa: F811
    changes = {
        "steps": 5,
        "checkpoint_every": 2,
        "optimizer": {"learning_rate": 1e-4, "warmup_steps": 0, "epsilon": 1e-4},
        "identity_loss": {"min_snr": 1e-3},
        "data": {"balanced": True, "shards": people_of_all_sizes},
    }
    one = train(tiny_training.config(base, faces, tmp_path / "one", batch_size=4, **changes))
    config = tiny_training.config(base, faces, tmp_path / "two", batch_size=2, **changes)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())

    killed = command(path)
    deadline = time.monotonic() + 240
    while not (tmp_path / "two/checkpoint-2").exists():
        assert killed.poll() is None and time.monotonic() < deadline, killed.communicate()[0].decode()[-3000:]
        time.sleep(0.01)
    for process in [*psutil.Process(killed.pid).children(recursive=True), killed]:
        process.kill()
    killed.communicate()
    assert not (tmp_path / "two/checkpoint-5").exists()
    resumed = command(path)
    output = resumed.communicate(timeout=240)[0].decode()
    assert resumed.returncode == 0, output[-3000:]

    weights = load_file(tmp_path / "two/checkpoint-5/model.safetensors")
    start = Trainer(tiny_training.config(base, faces, tmp_path / "start", **changes)).objective.state_dict()
    assert weights.keys() == start.keys()
    for name, parameter in one.objective.state_dict().items():
        assert (weights[name] - parameter).abs().max() <= 1e-5, name
    moved = max((weights[name] - start[name]).abs().max().item() for name in weights)
    assert moved > 3e-4  # thirty times the tolerance: five steps were taken
