"""What ends a long run elsewhere: steps that are not finite, signals, damaged files, broken trackers, a full disk."""

import os
import shutil
import signal
import subprocess
import sys
import types

import pytest
import tiny
import tiny_training
import torch
from accelerate.utils import DeepSpeedPlugin, FullyShardedDataParallelPlugin
from tiny_training import assert_same, reset_accelerate, train

from facesnap_diffusers.data.folder_lock import FolderLock
from facesnap_diffusers.errors import InputError, TrainingError
from facesnap_diffusers.training import checkpoints
from facesnap_diffusers.training.health import SpeedMeter, check_sharding
from facesnap_diffusers.training.objective import Objective
from facesnap_diffusers.training.samples import TrainingSamples
from facesnap_diffusers.training.trainer import Trainer


pytestmark = pytest.mark.slow


def log(folder):
    return (folder / "log.txt").read_text()


def weights(trainer):
    return {name: parameter.detach().clone() for name, parameter in trainer.objective.named_parameters()}


class TestStepsThatAreNotFinite:
    def test_one_is_skipped_and_counted(self, base, faces, tmp_path):
        """NaN in the gradient of step 2 of 4: weights, averages and optimizer are what they were after step 1."""
        reset_accelerate()
        trainer = Trainer(tiny_training.config(base, faces, tmp_path, steps=4, checkpoint_every=2))
        seen, forward = [], trainer.objective.forward

        def poisoned(batch, step=0):
            if torch.is_grad_enabled():
                seen.append((weights(trainer), [p.clone() for p in trainer.ema.shadow_params]))
            losses = forward(batch, step)
            return {**losses, "loss": losses["loss"] * (float("nan") if step == 1 else 1.0)}

        trainer.objective.forward = poisoned
        trainer.train()
        assert trainer.progress.skipped == 1 and len(seen) == 4
        assert_same(seen[1], seen[2])
        assert not torch.equal(seen[2][0]["parts.mixer.face_proj.weight"], seen[3][0]["parts.mixer.face_proj.weight"])
        assert "skipped_steps 1" in log(tmp_path).splitlines()[-1]
        # that of step 2 was put off by a step
        assert [path.name for path in checkpoints.checkpoint_folders(tmp_path)] == ["checkpoint-3", "checkpoint-4"]
        card = (tmp_path / "adapter/README.md").read_text()
        assert "4, 1 of them skipped (not finite)" in card

    def test_the_last_one_does_not_lose_the_run(self, base, faces, tmp_path, poison):
        """It changed nothing: what the step before it left is saved."""
        poison(1)
        trainer = train(tiny_training.config(base, faces, tmp_path, steps=2, validation={"batches": 0}))
        assert trainer.progress.skipped == 1 and (tmp_path / "checkpoint-2").is_dir()
        assert "2, 1 of them skipped (not finite)" in (tmp_path / "adapter/README.md").read_text()

    def test_a_signal_in_one_saves(self, base, faces, tmp_path, poison):
        poison(1, lambda: os.kill(os.getpid(), signal.SIGTERM))
        trainer = train(tiny_training.config(base, faces, tmp_path, steps=9))
        assert trainer.stop.signal == signal.SIGTERM and (tmp_path / "checkpoint-2").is_dir()

    def test_weights_that_are_not_finite_are_never_the_best(self, base, faces, tmp_path, monkeypatch):
        """Ruined by the update of the first step, whose loss and gradient were finite."""
        reset_accelerate()
        validation = {"every": 1, "batches": 0, "images": 0}
        data = {"validation": [str(faces)]}
        config = tiny_training.config(base, faces, tmp_path, steps=4, validation=validation, data=data)
        trainer = Trainer(config)
        monkeypatch.setattr(Trainer, "_validation_likeness", lambda *_: {"face_distance": 0.5})
        step = trainer.optimizer.step

        def ruin(*arguments):
            step(*arguments)
            torch.nn.init.constant_(trainer.parameters[0], float("nan"))

        trainer.optimizer.step = ruin
        with pytest.raises(TrainingError, match="not finite"):
            trainer.train()
        assert not (tmp_path / "best").exists()

    @pytest.fixture
    def poison(self, monkeypatch):
        """Makes the loss of a step NaN."""

        def poison(number, and_then=lambda: None):
            forward = Objective.forward

            def poisoned(objective, batch, step=0):
                losses = forward(objective, batch, step)
                if step != number or not torch.is_grad_enabled():
                    return losses
                and_then()
                return {**losses, "loss": losses["loss"] * float("nan")}

            monkeypatch.setattr(Objective, "forward", poisoned)

        return poison

    @pytest.mark.parametrize("steps", [6, 100])
    def test_a_run_that_diverges_ends_with_an_error_and_saves_nothing(self, base, faces, tmp_path, steps):
        changes = {
            "checkpoint_every": 1,
            "max_skipped_steps": 8,
            "optimizer": {"learning_rate": 1e30, "warmup_steps": 0},
        }
        with pytest.raises(TrainingError, match="not finite in .* with a lower optimizer.learning_rate"):
            train(tiny_training.config(base, faces, tmp_path, steps=steps, **changes))
        assert not checkpoints.checkpoint_folders(tmp_path) and not (tmp_path / "adapter").exists()

    def test_a_good_adapter_and_its_checkpoint_survive_a_divergence(self, base, faces, tmp_path):
        good = train(tiny_training.config(base, faces, tmp_path, steps=2))
        before = {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.safetensors"))}
        worse = {"learning_rate": 1e30, "warmup_steps": 0}
        with pytest.raises(TrainingError, match="checkpoint-2"):
            train(tiny_training.config(base, faces, tmp_path, steps=5, checkpoint_every=1, optimizer=worse))
        assert before == {path: path.read_bytes() for path in sorted(tmp_path.rglob("*.safetensors"))}
        assert good.progress.skipped == 0


class TestSignals:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_command_saves_and_ends(self, base, faces, tmp_path, number):
        """The signal reaches all processes, those that read ahead too, as from a scheduler or a terminal."""
        changes = {"steps": 100_000, "log_every": 1, "checkpoint_every": 100_000, "data": {"workers": 1}}
        (tmp_path / "config.yaml").write_text(tiny_training.config(base, faces, tmp_path / "run", **changes).to_yaml())
        process = start(["train", str(tmp_path / "config.yaml")])
        for line in process.stdout:  # tqdm shows the losses of a step
            if "3/100000" in line:
                break
        os.killpg(process.pid, number)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 128 + number, output[-2000:]
        assert "stopped at step" in output
        (saved,) = checkpoints.checkpoint_folders(tmp_path / "run")
        step = int(saved.name.removeprefix("checkpoint-"))
        assert 3 <= step < 1000 and (tmp_path / "run/adapter/mixer").is_dir()

        reset_accelerate()
        resumed = train(tiny_training.config(base, faces, tmp_path / "run", **{**changes, "steps": step + 1}))
        once = train(tiny_training.config(base, faces, tmp_path / "once", **{**changes, "steps": step + 1}))
        assert_same(weights(once), weights(resumed))


def start(arguments):
    tests = os.path.dirname(os.path.dirname(__file__))
    path = os.pathsep.join([tests, os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", "from facesnap_diffusers.cli import main; main()", *arguments],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


MODEL_DAMAGES = ("cut", "changed", "missing")


class TestDamagedCheckpoints:
    @pytest.mark.parametrize("damage", ["cut", "changed", "missing", "checksums", "no checksums", "no table"])
    def test_the_one_before_is_used(self, base, faces, tmp_path, damage):
        changes = {"checkpoint_every": 2, "keep_checkpoints": 2}
        once = train(tiny_training.config(base, faces, tmp_path, steps=6, **changes))
        path = tmp_path / "checkpoint-6" / ("model.safetensors" if damage in MODEL_DAMAGES else "checksums.json")
        content = path.read_bytes()
        if damage in ("missing", "no checksums"):
            path.unlink()
        elif damage == "no table":
            path.write_text("[]")
        elif damage == "changed":
            path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        else:
            path.write_bytes(content[: len(content) // 2])
        again = train(tiny_training.config(base, faces, tmp_path, steps=6, **changes))
        assert_same(weights(once), weights(again))
        assert [path.name for path in checkpoints.checkpoint_folders(tmp_path)] == ["checkpoint-4", "checkpoint-6"]
        assert (tmp_path / "damaged-checkpoint-6").is_dir()
        lines = [line.split(":")[0] for line in log(tmp_path).splitlines()]
        assert lines == [f"step {step}" for step in (1, 2, 3, 4, 5, 6, 5, 6)]

    def test_all_damaged(self, base, faces, tmp_path):
        config = tiny_training.config(base, faces, tmp_path, steps=1)
        train(config)
        (tmp_path / "checkpoint-1/optimizer.bin").write_bytes(b"nonsense")
        with pytest.raises(InputError, match="all checkpoints in .* are damaged"):
            train(config)


def test_without_resume_the_former_run_is_set_aside(base, faces, tmp_path):
    train(tiny_training.config(base, faces, tmp_path, steps=3))
    trainer = train(tiny_training.config(base, faces, tmp_path, steps=1, resume=False, keep_checkpoints=1))
    assert trainer.progress.step == 1
    assert [path.name for path in checkpoints.checkpoint_folders(tmp_path)] == ["checkpoint-1"]
    assert (tmp_path / "former-run-1/checkpoint-3/model.safetensors").is_file()


def test_a_learning_rate_changed_at_resume_is_used(base, faces, tmp_path):
    optimizer = {"learning_rate": 1e-3, "warmup_steps": 0, "lr_scheduler": "cosine", "weight_decay": 0.1}
    train(tiny_training.config(base, faces, tmp_path, steps=4, optimizer=optimizer))
    reset_accelerate()
    lower = {**optimizer, "learning_rate": {"mixer": 1e-5, "ffrnet": 2e-5, "identity_attention": 3e-5}}
    trainer = Trainer(tiny_training.config(base, faces, tmp_path, steps=8, optimizer={**lower, "weight_decay": 0.2}))
    used = []
    step = trainer.optimizer.step

    def recorded(*arguments):
        used.append([(group["lr"], group["weight_decay"]) for group in trainer.optimizer.param_groups])
        return step(*arguments)

    trainer.optimizer.step = recorded
    trainer.train()
    half = 0.5  # of a cosine over 8 steps, after 4
    assert used[0] == [(pytest.approx(half * rate), 0.2) for rate in (1e-5, 2e-5, 3e-5)]
    assert len(used) == 4 and used[1][0][0] < used[0][0][0]


def test_another_optimizer_at_resume_is_refused(base, faces, tmp_path):
    train(tiny_training.config(base, faces, tmp_path, steps=1))
    with pytest.raises(InputError, match="optimizer.name is adafactor, .* was trained with adamw; set it to that"):
        train(tiny_training.config(base, faces, tmp_path, steps=2, optimizer={"name": "adafactor"}))


def test_samples_a_second_are_those_of_the_step(base, faces, tmp_path, monkeypatch):
    counted = []
    monkeypatch.setattr(SpeedMeter, "read", lambda meter, samples: counted.append(samples) or {})
    train(tiny_training.config(base, faces, tmp_path, steps=2, gradient_accumulation=3))
    assert counted == [6, 6]  # batches of two


@pytest.mark.parametrize("workers", [0, 1])
def test_what_is_wrong_with_a_photo_arrives_whole(base, faces, tmp_path, monkeypatch, workers):
    message = "shard.tar, bytes 0 to 9: damaged" + 50 * " and damaged"

    def fail(samples, position):
        raise InputError(message)

    monkeypatch.setattr(TrainingSamples, "__getitem__", fail)
    with pytest.raises(InputError) as error:
        train(tiny_training.config(base, faces, tmp_path, steps=1, data={"workers": workers}))
    assert str(error.value) == message


@pytest.fixture
def validated_likeness(monkeypatch):
    """What validations find, one after the other; `None` kills the run instead."""

    def find(*distances):
        left = iter(distances)

        def likeness(*_):
            distance = next(left)
            if distance is None:
                raise SystemExit("killed")
            return {"face_distance": distance}

        monkeypatch.setattr(Trainer, "_validation_likeness", likeness)
        return left

    return find


def test_a_run_that_is_killed_before_a_validation_makes_up_for_it(base, faces, tmp_path, validated_likeness):
    """And what was the best before it stays the best."""
    distances = validated_likeness(0.4, None, 0.9)
    changes = {"checkpoint_every": 1, "validation": {"every": 1, "batches": 0, "images": 0}}
    config = tiny_training.config(base, faces, tmp_path, steps=2, data={"validation": [str(faces)]}, **changes)
    with pytest.raises(SystemExit):
        train(config)
    again = train(config)
    assert again.results["validation/face_distance"] == 0.9 and again.progress.best == 0.4
    assert "| steps | 1 |" in (tmp_path / "best/README.md").read_text()
    train(config)  # nothing is left to do
    assert next(distances, "none") == "none"


def test_what_a_former_run_validated_does_not_count(base, faces, tmp_path, validated_likeness):
    """With `resume: false`, and a kill before the first validation."""
    validated_likeness(0.4, 0.3, None, 0.9)
    changes = {"checkpoint_every": 1, "validation": {"every": 1, "batches": 0, "images": 0}}
    changes = {**changes, "data": {"validation": [str(faces)]}}
    train(tiny_training.config(base, faces, tmp_path, steps=2, **changes))
    with pytest.raises(SystemExit):
        train(tiny_training.config(base, faces, tmp_path, steps=1, resume=False, **changes))
    again = train(tiny_training.config(base, faces, tmp_path, steps=1, **changes))
    assert again.progress.best == again.results["validation/face_distance"] == 0.9


def test_what_a_run_can_do_without_does_not_end_it(base, faces, tmp_path, caplog):
    for name in ("time.json", "validated.json"):
        (tmp_path / name / "folder").mkdir(parents=True)
    trainer = Trainer(tiny_training.config(base, faces, tmp_path, steps=1))
    trainer.progress.step = 1
    for name in ("time.json", "validated.json"):
        trainer._write_numbers(name, {"step": 1})
        assert f"step 1: {name} failed (" in caplog.text


def test_accelerate_set_up_for_what_is_not_installed(base, faces, tmp_path, monkeypatch):
    def missing(**settings):
        raise ImportError("DeepSpeed is not installed")

    monkeypatch.setattr("facesnap_diffusers.training.trainer.Accelerator", missing)
    with pytest.raises(InputError, match=r"DeepSpeed is not installed\); run accelerate config and choose multi-GPU"):
        Trainer(tiny_training.config(base, faces, tmp_path))


def test_two_runs_on_one_folder_are_refused(base, faces, tmp_path):
    config = tiny_training.config(base, faces, tmp_path, steps=1)
    with FolderLock(tmp_path), pytest.raises(InputError, match=rf"is written to by process {os.getpid()} on"):
        train(config)
    assert not (tmp_path / "log.txt").exists()
    (tmp_path / ".lock").write_text("process 1 on a machine that is gone\n")  # nobody holds it
    train(config)


class TestCosmetics:
    @pytest.fixture
    def validated(self, base, faces, tmp_path):
        changes = {"data": {"validation": [str(faces)]}, "trackers": ["tensorboard"], "validation": {"every": 1}}
        return tiny_training.config(base, faces, tmp_path, steps=2, checkpoint_every=1, **changes)

    def test_images_reach_tensorboard(self, validated, tmp_path):
        loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
        train(validated)
        events = loader.EventAccumulator(str(next((tmp_path / "logs").iterdir())))
        events.Reload()
        (first, second) = events.Images("validation")
        size = tiny_training.SIZE
        assert (first.width, first.height) == (4 * size, size) and second.step == 2
        assert {"gradient_norm", "samples_per_second", "data_waiting", "memory_gb"} <= set(events.Tags()["scalars"])

    @pytest.mark.parametrize(
        "broken",
        ["validation_sheet", "validation_losses", "validation_likeness", "init_trackers", "log", "log_images"],
    )
    def test_what_shows_a_run_does_not_end_it(self, validated, tmp_path, monkeypatch, caplog, broken):
        from accelerate import Accelerator
        from accelerate.tracking import TensorBoardTracker

        from facesnap_diffusers.training import trainer

        def fail(*arguments, **keywords):
            raise ValueError("out of order")

        owner = {"init_trackers": Accelerator, "log": Accelerator, "log_images": TensorBoardTracker}.get(
            broken, trainer
        )
        monkeypatch.setattr(owner, broken, fail)
        if broken == "validation_likeness":
            validated.validation.judge = "some/judge"
            monkeypatch.setattr(trainer, "load_judge", lambda name: name)
        done = train(validated)
        assert done.progress.step == 2 and len(checkpoints.checkpoint_folders(tmp_path)) == 2
        assert "failed (ValueError: out of order); the run goes on" in caplog.text

    def test_a_card_that_cannot_be_written_after_a_validation_does_not_end_the_run(
        self, validated, tmp_path, monkeypatch, caplog
    ):
        """The one that is saved with the adapter can."""
        write = Trainer._write_card

        def fail(trainer, folder, results):
            if folder == tmp_path / "adapter":
                raise OSError(28, "No space left on device")
            write(trainer, folder, results)

        monkeypatch.setattr(Trainer, "_write_card", fail)
        done = train(validated)
        assert done.progress.step == 2 and len(checkpoints.checkpoint_folders(tmp_path)) == 2
        assert (
            "step 2: model card failed (OSError: [Errno 28] No space left on device); the run goes on" in caplog.text
        )
        assert "| steps | 2 |" in (tmp_path / "adapter/README.md").read_text()

    def test_a_log_that_cannot_be_written_does_not_end_the_run(self, validated, tmp_path, caplog):
        (tmp_path / "log.txt").mkdir()
        done = train(validated)
        assert done.progress.step == 2 and len(checkpoints.checkpoint_folders(tmp_path)) == 2
        assert "step 2: log.txt failed (IsADirectoryError" in caplog.text

    def test_saving_comes_before_showing(self, validated, tmp_path, monkeypatch):
        from facesnap_diffusers.training import trainer

        found = []

        def look(*arguments):
            found.append([path.name for path in checkpoints.checkpoint_folders(tmp_path)])
            return tiny_training.PIL.Image.new("RGB", (8, 8))

        monkeypatch.setattr(trainer, "validation_sheet", look)
        train(validated)
        assert found == [["checkpoint-1"], ["checkpoint-1", "checkpoint-2"]]

    def test_a_push_that_fails_does_not_lose_the_run(self, base, faces, tmp_path, monkeypatch, caplog):
        from facesnap_diffusers.training import trainer

        monkeypatch.setattr(trainer, "check_repo", lambda config: None)
        hub = {"push": True, "repo_id": "someone/faces"}
        done = train(tiny_training.config(base, faces, tmp_path, steps=1, hub=hub, data_statement="Shapes."))
        assert done.progress.step == 1 and "could not be uploaded" in caplog.text


class TestHub:
    CHANGES = {"hub": {"push": True, "repo_id": "someone/faces"}, "data_statement": "Coloured shapes."}

    def test_token_and_repo_are_tried_before_anything_is_loaded(self, faces, tmp_path):
        config = tiny_training.config(tmp_path / "no-base", faces, tmp_path, **self.CHANGES)
        with pytest.raises(InputError, match="hub.repo_id 'someone/faces' cannot be written to"):
            Trainer(config)

    def test_private_unless_told(self, base, faces, hub, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        train(tiny_training.config(base, faces, tmp_path, steps=1, **self.CHANGES))
        assert hub.private["someone/faces"] and hub.resolve("someone/faces", "main")
        hub.private["someone/faces"] = False
        reset_accelerate()
        with pytest.raises(InputError, match="is a public repo; set hub.private to false"):
            Trainer(tiny_training.config(base, faces, tmp_path, steps=1, **self.CHANGES))

    def test_a_token_that_may_only_read_is_refused(self, faces, hub, tmp_path, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_test")
        hub.add_commit("someone/faces", {"README.md": b""})
        hub.private["someone/faces"] = hub.read_only = True
        with pytest.raises(InputError, match="hub.repo_id 'someone/faces' cannot be written to"):
            Trainer(tiny_training.config(tmp_path / "no-base", faces, tmp_path, **self.CHANGES))

    def test_nothing_is_published_without_a_statement(self, base, faces, tmp_path):
        with pytest.raises(InputError, match="publishes an adapter without data_statement"):
            tiny_training.config(base, faces, tmp_path, hub=self.CHANGES["hub"])


class TestFullDisk:
    @pytest.fixture
    def small_disk(self, tmp_path):
        """A file system of 40 MB, where the system lets a test mount one."""
        folder = tmp_path / "disk"
        folder.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)], capture_output=True)
        if mounted.returncode:
            pytest.skip("needs the right to mount a file system")
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)

    @pytest.mark.parametrize("share", [0.05, 0.5, 1.1])
    def test_one_line_and_everything_before_is_whole(self, base, faces, tmp_path, small_disk, share):
        run = small_disk / "run"
        changes = {"checkpoint_every": 1, "validation": {"batches": 0, "images": 0}}
        train(tiny_training.config(base, faces, run, steps=1, **changes))
        size = sum(path.stat().st_size for path in (run / "checkpoint-1").iterdir())
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "log.txt"}
        free = shutil.disk_usage(small_disk).free
        (small_disk / "filler").write_bytes(bytes(int(free - share * size)))
        with pytest.raises(TrainingError, match="cannot be written to .*; make room and start again") as error:
            train(tiny_training.config(base, faces, run, steps=3, **changes))
        assert "\n" not in str(error.value)
        kept = [path for path in before if "checkpoint-1" in str(path)]
        assert kept and all(path.read_bytes() == before[path] for path in kept)

        (small_disk / "filler").unlink()
        resumed = train(tiny_training.config(base, faces, run, steps=3, **changes))
        once = train(tiny_training.config(base, faces, tmp_path / "once", steps=3, **changes))
        assert_same(weights(once), weights(resumed))
        loaded = tiny.facesnap(tiny.sd_pipeline())
        loaded.load_facesnap_adapter(run / "adapter")


class TestSharding:
    @pytest.mark.parametrize("version", [1, 2])
    def test_fsdp_is_refused(self, version):
        plugin = FullyShardedDataParallelPlugin(fsdp_version=version)
        with pytest.raises(InputError, match=rf"does not work with FSDP{version}; .*\(DDP\), with .* adamw_8bit"):
            check_sharding(types.SimpleNamespace(fsdp_plugin=plugin))

    @pytest.mark.parametrize("stage", [0, 1, 2, 3])
    def test_deepspeed_is_refused(self, stage):
        plugin = types.SimpleNamespace(spec=DeepSpeedPlugin, zero_stage=stage)
        with pytest.raises(InputError, match=r"does not work with DeepSpeed; .*\(DDP\)") as error:
            check_sharding(types.SimpleNamespace(deepspeed_plugin=plugin, fsdp_plugin=None))
        assert "\n" not in str(error.value)
        check_sharding(types.SimpleNamespace(deepspeed_plugin=None, fsdp_plugin=None))

    def test_accelerate_set_up_for_fsdp(self, base, faces, tmp_path, monkeypatch):
        """As `accelerate launch` hands it on."""
        reset_accelerate()
        from facesnap_diffusers.training import trainer

        real = trainer.Accelerator

        def sharded(**keywords):
            accelerator = real(**keywords)
            accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin(fsdp_version=2)
            return accelerator

        monkeypatch.setattr(trainer, "Accelerator", sharded)
        with pytest.raises(InputError, match="FSDP2"):
            Trainer(tiny_training.config(tmp_path / "no-base", faces, tmp_path))
