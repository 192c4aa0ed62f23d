"""Training runs on tiny real components: exact, and doing what they should."""

import copy
import dataclasses
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny
import tiny_training
import torch
import yaml
from accelerate.state import AcceleratorState, GradientState, PartialState
from safetensors.torch import load_file
from typer.testing import CliRunner

from facesnap_diffusers import FaceSnapPipeline
from facesnap_diffusers.cli import app
from facesnap_diffusers.errors import FaceSnapError, InputError
from facesnap_diffusers.training import latents
from facesnap_diffusers.training.config import load_config, parse_config
from facesnap_diffusers.training.data import RunOrder
from facesnap_diffusers.training.latents import CropLatents
from facesnap_diffusers.training.shards import PreparedFaces
from facesnap_diffusers.training.trainer import Trainer


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_training.write_base(folder)
    return folder


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    tiny_training.write_faces(folder)
    return folder


@pytest.fixture(autouse=True)
def fresh_accelerate():
    yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


def train(config):
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    trainer = Trainer(config)
    trainer.results = trainer.train()
    return trainer


def assert_same(first, second, name=""):
    """Bit for bit, through nested containers."""
    if isinstance(first, torch.Tensor):
        assert torch.equal(first, second), name
    elif isinstance(first, np.ndarray):
        assert np.array_equal(first, second), name
    elif isinstance(first, dict):
        assert first.keys() == second.keys(), name
        for key in first:
            assert_same(first[key], second[key], f"{name}.{key}")
    elif isinstance(first, (list, tuple)):
        assert len(first) == len(second), name
        for number, (a, b) in enumerate(zip(first, second)):
            assert_same(a, b, f"{name}[{number}]")
    else:
        assert first == second, name


def checkpoint(folder):
    """All that a checkpoint of one process holds: weights, optimizer, step, schedule, EMA, random state."""
    found = {path.name: load_file(path) for path in Path(folder).glob("*.safetensors")}
    for path in [*Path(folder).glob("*.bin"), *Path(folder).glob("*.pkl")]:
        found[path.name] = torch.load(path, weights_only=False)
    return found


@pytest.mark.parametrize(
    ("half", "changes"), [(10, {"gradient_accumulation": 2, "batch_size": 1}), (2, {"data": {"crops": 2}})]
)
def test_resume_is_exact(base, faces, tmp_path, half, changes):
    changes = {"steps": 2 * half, "checkpoint_every": half, **changes}
    train(tiny_training.config(base, faces, tmp_path / "once", **changes))

    first = tiny_training.config(base, faces, tmp_path / "twice", **changes)
    stopped = Trainer(first)
    save = stopped._save_adapter

    def stop(results):
        save(results)
        raise KeyboardInterrupt

    stopped._save_adapter = stop
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
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


def test_only_the_trained_parts_change(base, faces, tmp_path):
    trainer = Trainer(tiny_training.config(base, faces, tmp_path, batch_size=4))
    frozen = {
        name: copy.deepcopy(component.state_dict())
        for name, component in trainer.pipeline.components.items()
        if isinstance(component, torch.nn.Module) and name not in ("mixer", "ffrnet", "identity_attention")
    }
    frozen["recogniser"] = copy.deepcopy(trainer.objective.recogniser.state_dict())
    assert {"unet", "vae", "text_encoder", "face_image_encoder", "landmark_predictor"} <= frozen.keys()
    trained = {name: parameter.detach().clone() for name, parameter in trainer.objective.named_parameters()}
    gradients: dict[str, float] = {}
    zero_grad = trainer.optimizer.zero_grad

    def record(*arguments, **keywords):
        for name, parameter in trainer.objective.named_parameters():
            gradients[name] = max(gradients.get(name, 0.0), parameter.grad.abs().max().item())
        zero_grad(*arguments, **keywords)

    trainer.optimizer.zero_grad = record
    trainer.train()

    # the keys' projection of a single text token's bias and the like aside, everything learns
    assert {name for name, size in gradients.items() if size == 0} <= {"parts.mixer.unconditional_tokens"}
    for part in ("mixer", "ffrnet", "identity_attention"):
        assert any(name.startswith(f"parts.{part}.") for name in trained)
    for name, parameter in trainer.objective.named_parameters():
        assert gradients[name] == 0 or not torch.equal(parameter, trained[name]), name
    for name, state in frozen.items():
        component = trainer.objective.recogniser if name == "recogniser" else getattr(trainer.pipeline, name)
        assert all(parameter.grad is None for parameter in component.parameters())
        assert_same(state, dict(component.state_dict()), name)


@pytest.mark.parametrize("part", ["mixer", "ffrnet", "identity_attention"])
def test_each_part_trains_alone(base, faces, tmp_path, part):
    trainer = train(
        tiny_training.config(base, faces, tmp_path, steps=1, adapter={"train": [part]}, optimizer={"warmup_steps": 0})
    )
    assert {name.split(".")[1] for name, _ in trainer.objective.named_parameters()} == {part}
    loaded = FaceSnapPipeline.from_pretrained(base, safety_checker=None)
    loaded.load_facesnap_adapter(tmp_path / "adapter")
    assert loaded.facesnap_config.parts == ["mixer", "identity_attention", "ffrnet", "landmark_predictor"]


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs the trainer in two processes, as a user does."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
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


def test_two_processes_equal_one_with_twice_the_batch(base, faces, tmp_path, command):
    changes = {
        "steps": 5,
        "checkpoint_every": 2,
        "optimizer": {"learning_rate": 1e-4, "warmup_steps": 0, "epsilon": 1e-4},
        "identity_loss": {"min_snr": 1e-3},
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


def test_overfits_eight_people(tmp_path):
    """The diffusion loss (min-SNR weighted) falls to under 0.7 and L_id to under 0.75 of what they were before."""
    tiny_training.write_base(tmp_path / "base", "v_prediction")
    tiny_training.write_faces(tmp_path / "faces", people=8, photos=2)
    config = tiny_training.config(
        tmp_path / "base",
        tmp_path / "faces",
        tmp_path / "run",
        steps=150,
        batch_size=4,
        data={
            "validation": [str(tmp_path / "faces")],
            "zoom": [1, 1],
            "flip": 0,
            "reference_flip": 0,
            "reference_jitter": 0,
        },
        dropout={"text": 0, "identity": 0, "both": 0, "landmarks": 0},
        optimizer={"learning_rate": 2e-3},
        validation={"batches": 8, "images": 0},
        log_every=150,
    )
    trainer = Trainer(config)
    trainer.folder.mkdir()
    before = trainer._validate(0)
    after = trainer.train()
    assert after["validation/diffusion"] < 0.7 * before["validation/diffusion"]
    assert after["validation/identity"] < 0.75 * before["validation/identity"]


def test_order_of_samples_does_not_depend_on_processes():
    whole = [position for batch in RunOrder(3, 9, 4) for position in batch]
    halves = [list(RunOrder(3, 9, 2, rank, 2)) for rank in range(2)]
    assert whole == [position for pair in zip(*halves) for batch in pair for position in batch]
    assert whole == list(range(12, 36))


class TestSamples:
    @pytest.fixture(scope="class")
    def samples(self, base, faces, tmp_path_factory):
        config = tiny_training.config(base, faces, tmp_path_factory.mktemp("run"), dropout={"text": 0.2, "both": 0.1})
        samples = Trainer(config).samples
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        return samples

    def test_a_position_is_one_sample(self, samples):
        samples._epoch = -1
        first = samples[7]
        for position in (30, 2, 100):
            samples[position]
        assert_same(first, samples[7])
        assert not torch.equal(first["noise"], samples[8]["noise"])

    def test_every_photo_comes_once_in_an_epoch(self, samples):
        count = len(samples.faces)
        for epoch in range(2):
            order = [samples._index(epoch * count + place) for place in range(count)]
            assert sorted(order) == list(range(count))
        assert order != [samples._index(place) for place in range(count)]

    def test_reference_is_another_photo_of_the_same_person(self, samples):
        faces = samples.faces
        embeddings = np.stack([faces[index].embedding for index in range(len(faces))])
        for position in range(24):
            index = samples._index(position)
            reference = np.abs(embeddings - samples[position]["face_embeds"].numpy()).max(axis=1).argmin()
            assert reference != index and faces.person[reference] == faces.person[index]

    def test_without_labels_the_reference_is_the_photo_itself(self, samples, monkeypatch):
        monkeypatch.setattr(samples.faces, "person", [None] * len(samples.faces))
        for position in range(6):
            own = samples.faces[samples._index(position)].embedding
            assert np.array_equal(samples[position]["face_embeds"].numpy(), own)

    def test_landmarks_follow_crop_and_mirror(self, samples, monkeypatch):
        """The face's colour, which nothing else in the image has, stands at the nose."""
        mirror = samples.predictor.config.mirror
        for position in range(12):
            face = samples.faces[samples._index(position)]
            colour = np.random.default_rng(int(face.info["identity"].removeprefix("person"))).integers(0, 255, (3, 3))[
                0
            ]
            plain, mirrored = [], []
            for flip, sample in ((0.0, plain), (1.0, mirrored)):
                monkeypatch.setattr(samples, "config", dataclasses.replace(samples.config, flip=flip))
                values = samples[position]
                x, y = values["detected"][30].round().long().tolist()
                seen = (values["pixel_values"][:, y, x] / 2 + 0.5) * 255
                assert (seen - torch.from_numpy(colour)).abs().max() < 25
                sample += [values["pixel_values"], values["detected"], values["landmarks"]]
            assert torch.equal(plain[0].flip(-1), mirrored[0])
            for points, turned in zip(plain[1:], mirrored[1:]):
                assert torch.allclose(turned[:, 0], tiny_training.SIZE - 1 - points[mirror, 0], atol=1e-4)
                assert torch.allclose(turned[:, 1], points[mirror, 1])
                assert turned[36, 0] < turned[45, 0]  # right stays left in the image

    def test_shares_of_what_is_left_out(self, samples):
        random = np.random.default_rng(0)
        drawn = [samples._left_out(random) for _ in range(4000)]
        for name, expected in {"without_text": 0.3, "without_identity": 0.15, "without_landmarks": 0.1}.items():
            assert abs(np.mean([item[name].item() for item in drawn]) - expected) < 0.03
        both = np.mean([(item["without_text"] & item["without_identity"]).item() for item in drawn])
        assert abs(both - 0.1) < 0.02


class TestFixedCrops:
    @pytest.fixture
    def trainer(self, base, faces, tmp_path, monkeypatch):
        monkeypatch.setattr(latents, "CHUNK", 16)
        trainer = Trainer(tiny_training.config(base, faces, tmp_path, data={"crops": 4, "flip": 0.25}))
        trainer._compute_latents(trainer.samples.latents)
        return trainer

    def test_latents_are_those_of_the_pixels(self, trainer):
        samples, count = trainer.samples, len(trainer.samples.faces)
        assert (
            samples.latents.count == 4 * count
            and sum(samples.fixed_crop(i).mirrored for i in range(4 * count)) == count
        )
        numbers = range(0, 4 * count, 7)
        pixels = samples.fixed_pixels(numbers)
        # without the VAE's noise, whose deviation is bounded here
        vae = trainer.pipeline.vae
        with torch.no_grad():
            distribution = vae.encode(pixels).latent_dist
        for place, number in enumerate(numbers):
            mean, std = (getattr(distribution, name)[place] * vae.config.scaling_factor for name in ("mean", "std"))
            off = (samples.latents[number] - mean) / std
            assert off.abs().max() < 5 and 0.8 < off.std() < 1.2

    def test_samples_have_the_latents_of_their_crop(self, trainer):
        """A photo's crops come in turn; the landmarks of a sample are those of the crop that its latents show."""
        samples, count = trainer.samples, len(trainer.samples.faces)
        seen = set()
        for position in range(4 * count):
            sample, index = samples[position], samples._index(position)
            assert "pixel_values" not in sample and "encoder_noise" not in sample
            (number,) = [
                number
                for number in range(4 * index, 4 * index + 4)
                if torch.equal(samples.latents[number], sample["latents"])
            ]
            seen.add(number)
            crop, face = samples.fixed_crop(number), samples.faces[index]
            expected = crop.points(face.landmarks, tiny_training.SIZE, samples.predictor.config.mirror)
            assert torch.equal(sample["detected"], expected)
        assert len(seen) == 4 * count

    def test_are_the_same_bits_however_they_are_computed(self, trainer):
        folder = trainer.samples.latents.folder
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        assert len(before) == 4
        for number in range(3):
            (folder / f"{number:06d}.npy").unlink()
        again = CropLatents(folder, trainer.samples.latents.count, trainer.samples.latents.settings)
        trainer.samples.latents = again
        for rank in range(2):
            again.compute(trainer._encode_crops, trainer.config.batch_size, rank, 2)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before

    def test_of_other_crops_are_refused(self, base, faces, tmp_path, trainer):
        with pytest.raises(InputError, match="latents of other data"):
            Trainer(tiny_training.config(base, faces, tmp_path, data={"crops": 4, "flip": 0.5})).train()

    def test_belong_to_the_weights_of_the_encoder(self, trainer):
        vae, before = trainer.pipeline.vae, trainer._latent_settings()
        vae.decoder.conv_in.weight.data += 1
        assert trainer._latent_settings() == before
        vae.encoder.conv_in.weight.data += 1
        assert trainer._latent_settings() != before


class TestOptions:
    @pytest.mark.parametrize(
        "changes",
        [
            {
                "identity_loss": {"mode": "few_step", "every": 2, "steps": 3, "gradient_steps": 2},
                "loss": {"extra": "test_training:extra_loss"},
            },
            {"identity_loss": {"reference": "photo"}},
            {"identity_loss": {"weight": 0.0, "recogniser": None}},
            {"gradient_checkpointing": True},
            {"mixed_precision": "bf16"},
            {"optimizer": {"name": "adafactor"}},
            {
                "optimizer": {
                    "name": "adamw_fused",
                    "learning_rate": {"mixer": 1e-3, "ffrnet": 1e-4, "identity_attention": 1e-2},
                }
            },
            {"loss": {"min_snr_gamma": None, "face_weight": 3.0, "extra": "test_training:extra_loss"}},
            {"data": {"landmarks": "detected", "workers": 1}},
            {"ema_decay": 0.0},
            {"trackers": ["tensorboard"]},
        ],
        ids=lambda changes: ",".join(f"{key}:{value}" for key, value in changes.items())[:40],
    )
    def test_run(self, base, faces, tmp_path, changes):
        if "trackers" in changes:
            pytest.importorskip("tensorboard")
        trainer = train(tiny_training.config(base, faces, tmp_path, steps=2, validation={"batches": 0}, **changes))
        assert all(np.isfinite(value) for value in trainer.results.values())
        if trainer.config.identity_loss.mode == "few_step":
            assert 0 < trainer.results["identity"] < 2 and trainer.results["identity_share"] > 0
        if trainer.config.loss.extra:
            assert abs(trainer.results["extra"] - EXTRA) < 1e-6

    def test_means_are_over_the_steps_that_have_a_loss(self, base, faces, tmp_path):
        """L_id at every second step only: logged once for two steps, or at each, it is what it was in the first."""
        identity_loss = {"mode": "few_step", "every": 2, "steps": 2}
        logged = [
            train(
                tiny_training.config(
                    base, faces, tmp_path / str(every), steps=2, log_every=every, identity_loss=identity_loss
                )
            ).results["identity"]
            for every in (1, 2)
        ]
        assert logged[0] == pytest.approx(logged[1], rel=1e-6) and logged[0] > 0

    def test_validation_has_the_identity_loss(self, base, faces, tmp_path):
        identity_loss = {"mode": "few_step", "every": 4, "steps": 2, "start_step": 1}
        changes = {"identity_loss": identity_loss, "data": {"validation": [str(faces)]}}
        trainer = train(tiny_training.config(base, faces, tmp_path, steps=1, **changes))
        assert trainer.results["validation/identity"] > 0 and "identity" not in trainer.results

    def test_gradient_checkpointing_changes_nothing(self, base, faces, tmp_path):
        weights = [
            train(
                tiny_training.config(base, faces, tmp_path / str(on), steps=2, gradient_checkpointing=on)
            ).objective.state_dict()
            for on in (False, True)
        ]
        assert weights[0].keys() == weights[1].keys()
        for name in weights[0]:
            assert torch.allclose(weights[0][name], weights[1][name], atol=1e-5), name

    def test_validation_and_adapter(self, base, faces, tmp_path):
        config = tiny_training.config(
            base, faces, tmp_path, data={"validation": [str(faces)]}, data_statement="Colours.", mixed_precision="bf16"
        )
        trainer = train(config)
        assert 0 < trainer.results["validation/error"] < 3
        assert (tmp_path / "validation/step-0000004.png").is_file()
        card = (tmp_path / "adapter/README.md").read_text()
        assert "Colours." in card and "12 photos of 4 labelled people; 4 steps" in card
        assert "validation/error" in card and "min_snr_gamma: 5.0" in card
        pipe = FaceSnapPipeline.from_pretrained(base, safety_checker=None)
        pipe.load_facesnap_adapter(tmp_path / "adapter")
        averaged = dict(zip((name for name, _ in trainer.objective.named_parameters()), trainer.ema.shadow_params))
        assert torch.equal(pipe.mixer.face_proj.weight, averaged["parts.mixer.face_proj.weight"])

    def test_going_on_with_an_adapter(self, base, faces, tmp_path):
        first = train(tiny_training.config(base, faces, tmp_path / "first", steps=2, ema_decay=0.0))
        second = Trainer(
            tiny_training.config(
                base, faces, tmp_path / "second", adapter={"start_from": str(tmp_path / "first/adapter")}
            )
        )
        assert_same(dict(first.objective.state_dict()), dict(second.objective.state_dict()))


def test_command_publishes_the_adapter(base, faces, hub, tmp_path, monkeypatch):
    """From a file to the Hub, with a model card that says what the adapter is, and from there into a pipeline."""
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    config = tiny_training.config(base, faces, tmp_path / "run", steps=2, data={"validation": [str(faces)]})
    config.hub.repo_id, config.data_statement = "someone/faces", "Coloured shapes, of nobody."
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    result = CliRunner().invoke(app, ["train", str(tmp_path / "config.yaml"), "--set", "hub.push=true"])
    assert result.exit_code == 0, result.exception

    files = hub.files("someone/faces", hub.resolve("someone/faces", "main"))
    card = files["README.md"].decode()
    for text in ("Coloured shapes, of nobody.", "12 photos of 4 labelled people; 2 steps", "| validation/identity |"):
        assert text in card
    # the config in the card is the run's
    assert parse_config(yaml.safe_load(card.split("```yaml\n")[1].split("```")[0])).steps == 2
    pipe = FaceSnapPipeline.from_pretrained(base, safety_checker=None)
    pipe.load_facesnap_adapter("someone/faces", cache_dir=str(tmp_path / "cache"))
    saved = load_file(tmp_path / "run/adapter/mixer/diffusion_pytorch_model.safetensors")
    assert_same(saved, dict(pipe.mixer.state_dict()))


EXTRA = 0.25


def extra_loss(objective, batch, identity_tokens, text_embeds, latents, predicted_latents, sampled_latents, step):
    assert identity_tokens.shape[0] == text_embeds.shape[0] == len(batch["caption"]) and step >= 0
    pictures = objective.decode_latents(torch.stack([latents, predicted_latents]).flatten(0, 1))
    assert len(pictures) == 2 * len(batch["caption"]) and torch.isfinite(pictures).all()
    few_step = objective.identity_loss.mode == "few_step"
    assert (sampled_latents is not None) == (few_step and step % objective.identity_loss.every == 0)
    if few_step and sampled_latents is not None:
        assert sampled_latents.requires_grad and sampled_latents.shape == latents.shape
    return 0 * identity_tokens.mean() + EXTRA


class TestSDXL:
    def test_run(self, faces, tmp_path):
        pipe = tiny.xl_pipeline()
        pipe.scheduler.register_to_config(prediction_type="v_prediction", rescale_betas_zero_snr=True)
        pipe.save_pretrained(tmp_path / "base")
        tiny.image_encoder().save_pretrained(tmp_path / "base/face_encoder")
        config = tiny_training.config(
            tmp_path / "base",
            faces,
            tmp_path / "run",
            steps=2,
            base={"family": "sdxl"},
            data={"validation": [str(faces)]},
        )
        trainer = train(config)
        assert 0 < trainer.results["validation/error"] < 10


class TestConfig:
    @pytest.fixture
    def values(self, tmp_path):
        config = tiny_training.config(tmp_path / "base", tmp_path / "faces", tmp_path / "output")
        return yaml.safe_load(config.to_yaml())

    def test_file_and_overrides(self, values, tmp_path):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        config = load_config(path, ["optimizer.learning_rate=1e-5", "data.zoom=[1, 2]", "identity_loss.weight=0"])
        assert config.optimizer.learning_rate == 1e-5 and config.data.zoom == (1, 2)
        assert parse_config(yaml.safe_load(config.to_yaml())) == config
        assert load_config(path, ["mixed_precision=no"]).mixed_precision == "no"

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("stepz=3", "unknown key stepz"),
            ("optimizer.lr=1", "unknown key optimizer.lr"),
            ("steps=many", "steps is 'many'"),
            ("dropout.text=1.5", "dropout.text is 1.5"),
            ("data.resolution=33", "data.resolution is 33"),
            ("adapter.train=[unet]", "adapter.train.0 is 'unet'"),
            ("dropout.text=0.96", "add up to more than 1"),
            ("identity_loss.recogniser=null", "identity_loss.recogniser"),
            ("optimizer.learning_rate={mixer: 1e-4}", "learning_rate has no value for"),
            ("data.zoom=[2, 1]", "data.zoom"),
            ("steps", "no ="),
            ("steps.x=1", "no section"),
        ],
    )
    def test_errors_name_the_key(self, values, tmp_path, override, message):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(values))
        with pytest.raises(InputError, match=message) as error:
            load_config(path, [override])
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("name", ["sd15", "sdxl"])
    def test_examples(self, name):
        config = load_config(Path(__file__).parents[1] / f"examples/training/{name}.yaml")
        assert config.adapter.train == ["mixer", "ffrnet", "identity_attention"]
        assert config.base.family == ("sdxl" if name == "sdxl" else "sd")

    def test_missing_keys_and_files(self, values, tmp_path):
        del values["base"]["model"]
        with pytest.raises(InputError, match="lacks base.model"):
            parse_config(values)
        with pytest.raises(InputError, match="cannot be read"):
            load_config(tmp_path / "none.yaml")

    def test_data_must_fit_the_adapter(self, base, faces, tmp_path):
        with pytest.raises(FaceSnapError, match="embeddings of dlib"):
            Trainer(tiny_training.config(base, faces, tmp_path, adapter={"face_encoder": "other"}))
        with pytest.raises(InputError, match="face crops"):
            Trainer(
                tiny_training.config(
                    base,
                    faces,
                    tmp_path,
                    identity_loss={
                        "reference": "photo",
                        "recogniser": {"network": "tiny_training:TinyRecogniser", "size": 64},
                    },
                )
            )
        with pytest.raises(InputError, match="no manifest|no prepare"):
            PreparedFaces([str(tmp_path)])
