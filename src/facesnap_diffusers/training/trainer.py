"""The training loop."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..adapter.config import FaceSnapConfig
from ..adapter.model_card import write_model_card
from ..data.shards import PreparedFaces, read_settings
from ..files import atomic_file
from ..models.landmark_predictor import load_landmark_predictor
from ..settings import dump_settings
from .base import adapter_config, load_pipeline
from .card import describe_training
from .checkpoints import Progress, load_checkpoint, save_checkpoint
from .latents import CropLatents
from .objective import Objective
from .optimizers import create_optimizer
from .recognizer import load_recognizer
from .samples import ResumableBatchSampler, TrainingSamples, collate
from .shard_check import check_shards
from .training_config import DropoutConfig, TrainingConfig
from .validation import to_device, validation_losses, validation_sheet


logger = logging.getLogger(__name__)


class Trainer:
    r"""
    Trains a FaceSnap adapter on a frozen base. In several processes (`accelerate launch`) each has one.

    Args:
        config ([`TrainingConfig`]): Of the run.

    Raises:
        InputError: The config names something that could not be loaded, or the shards do not give what the adapter is
            trained with; the latter before the base model is loaded.
    """

    def __init__(self, config: TrainingConfig):
        self.config = config
        self.folder = Path(config.output_dir)
        self.accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_steps=config.gradient_accumulation,
            log_with=config.trackers or None,
            project_config=ProjectConfiguration(project_dir=str(self.folder), logging_dir=str(self.folder / "logs")),
        )
        self._tell_deepspeed_the_batch_size()
        if config.allow_tf32 and torch.cuda.is_available():
            torch.backends.cuda.matmul.allow_tf32 = True
        set_seed(config.seed)

        adapter = adapter_config(config)
        if adapter is not None:
            self._check_shards(adapter)
        self.faces = PreparedFaces(config.data.shards)
        self.pipeline = load_pipeline(config).to(self.accelerator.device)
        if adapter is None:
            self._check_shards(self.pipeline.facesnap_config)

        recognizer = None
        if config.identity_loss.weight > 0 and config.identity_loss.recognizer is not None:
            recognizer = load_recognizer(config.identity_loss.recognizer).to(self.accelerator.device)
        self.objective = Objective(self.pipeline, config.adapter.train, config.loss, config.identity_loss, recognizer)
        self.samples = self._samples(self.faces, config.dropout, config.seed, self.objective.extras)
        if config.data.crops is not None:
            count = len(self.faces) * config.data.crops
            self.samples.latents = CropLatents(self.folder / "latents", count, self._latent_settings())
        self.validation_samples = None
        if config.data.validation:
            validation_faces = PreparedFaces(config.data.validation)
            no_dropout = DropoutConfig(text=0, identity=0, both=0, landmarks=0)
            # validation images have the reference's recognition crop beside them
            extras = self.objective.extras | ({"recognition_crop"} if config.validation.images else set())
            self.validation_samples = self._samples(validation_faces, no_dropout, 0, extras)
            self.validation_samples.config = dataclasses.replace(
                config.data, flip=0.0, crops=None, reference_flip=0.0, reference_jitter=0.0
            )

        optimizer = create_optimizer(config.optimizer, self.objective.parts)
        self.lr_scheduler = get_scheduler(
            config.optimizer.lr_scheduler,
            optimizer,
            num_warmup_steps=config.optimizer.warmup_steps,
            num_training_steps=config.steps,
        )
        self.parameters = list(self.objective.parameters())
        self.model, self.optimizer = self.accelerator.prepare(self.objective, optimizer)
        self.progress = Progress()
        self.ema = None
        registered: list[Any] = [self.progress, self.lr_scheduler]
        if config.ema_decay > 0:
            self.ema = EMAModel(self.parameters, decay=config.ema_decay, foreach=True)
            registered.append(self.ema)
        self.accelerator.register_for_checkpointing(*registered)

    def train(self) -> dict[str, float]:
        """Trains from the last checkpoint to the last step, and writes the adapter. Returns the last losses."""
        config, accelerator = self.config, self.accelerator
        if accelerator.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_file(self.folder / "config.yaml") as temporary:
                temporary.write_text(config.to_yaml())
        if config.trackers:
            accelerator.init_trackers("facesnap", config=_flat(dump_settings(config)))
        if config.resume and load_checkpoint(accelerator, self.folder):
            logger.info("resumed at step %d", self.progress.step)
            if self.ema is not None:
                self.ema.to(accelerator.device)

        if self.samples.latents is not None:
            self._compute_latents(self.samples.latents)
        results: dict[str, float] = {}
        sums: dict[str, torch.Tensor] = {}
        counts: Counter[str] = Counter()
        bar = tqdm(
            initial=self.progress.step, total=config.steps, unit="step", disable=not accelerator.is_local_main_process
        )
        batches = iter(self._batches(self.progress.step))
        while self.progress.step < config.steps:
            for _ in range(config.gradient_accumulation):
                losses = self._forward_backward(to_device(next(batches), accelerator.device))
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + value.detach().float()
                counts.update(losses.keys())  # not every loss is computed at every step
            self.lr_scheduler.step()
            if self.ema is not None:
                self.ema.step(self.parameters)
            self.progress.step += 1
            step, last = self.progress.step, self.progress.step == config.steps
            bar.update()
            if step % config.log_every == 0 or last:
                means = {name: accelerator.reduce(value / counts[name], "mean").item() for name, value in sums.items()}
                rates = {f"learning_rate/{part}": rate for part, rate in self._learning_rates().items()}
                results.update(means)
                self._log({**means, **rates}, step)
                bar.set_postfix({name: f"{value:.4g}" for name, value in means.items()})
                sums, counts = {}, Counter()
            if step % config.validation.every == 0 or last:
                results.update(self._validate(step))
            if step % config.checkpoint_every == 0 or last:
                self._save_adapter(results)  # first: with the last checkpoint a run is complete
                save_checkpoint(accelerator, self.folder, step, config.keep_checkpoints)
        bar.close()
        if config.trackers:
            accelerator.end_training()
        if config.hub.push and accelerator.is_main_process:
            self._push()
        accelerator.wait_for_everyone()
        return results

    def _forward_backward(self, batch: dict[str, Any]) -> dict[str, torch.Tensor]:
        """One forward and backward pass; with the last of a step, the optimizer's."""
        with self.accelerator.accumulate(self.model), self._attention_kernel():
            with self.accelerator.autocast():
                losses = self.model(batch, self.progress.step)
            self.accelerator.backward(losses["loss"])
            if self.accelerator.sync_gradients and self.config.optimizer.max_grad_norm is not None:
                self.accelerator.clip_grad_norm_(self.parameters, self.config.optimizer.max_grad_norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        return losses

    def _attention_kernel(self) -> AbstractContextManager[None]:
        """On CPUs, the backward pass of fused attention takes three times as long in bfloat16 as in float32."""
        if self.accelerator.device.type == "cpu" and self.config.mixed_precision == "bf16":
            return sdpa_kernel(SDPBackend.MATH)
        return nullcontext()

    def _batches(self, step: int) -> DataLoader:
        """What is left of the run, as this process sees it."""
        config = self.config
        batch_sampler = ResumableBatchSampler(
            step * config.gradient_accumulation,
            config.steps * config.gradient_accumulation,
            config.batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        return DataLoader(
            self.samples,
            batch_sampler=batch_sampler,
            collate_fn=collate,
            num_workers=config.data.workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=config.data.workers > 0,
            # of its own: starting to read must not draw from the random state that checkpoints hold
            generator=torch.Generator(),
        )

    def _samples(
        self, faces: PreparedFaces, dropout: DropoutConfig, seed: int, extras: Collection[str]
    ) -> TrainingSamples:
        pipeline, config = self.pipeline, self.config
        encoder = pipeline.face_image_encoder
        side = config.data.resolution // pipeline.vae_scale_factor
        return TrainingSamples(
            faces,
            config.data,
            dropout,
            load_landmark_predictor(),
            pipeline.face_image_processor if encoder is not None else None,
            encoder.config.image_size if encoder is not None else 0,
            len(self.objective.noise_schedule),
            (pipeline.unet.config.in_channels, side, side),
            seed,
            extras,
        )

    def _compute_latents(self, latents: CropLatents) -> None:
        accelerator = self.accelerator
        latents.compute(
            self._encode_crops, self.config.batch_size, accelerator.process_index, accelerator.num_processes
        )
        accelerator.wait_for_everyone()

    def _encode_crops(self, numbers: range) -> torch.Tensor:
        device = self.accelerator.device
        generator = torch.Generator().manual_seed(numbers.start)
        noise = torch.randn((len(numbers), *self.samples.latent_shape), generator=generator)
        return self.objective.encode_images(self.samples.fixed_pixels(numbers).to(device), noise.to(device))

    def _latent_settings(self) -> dict[str, Any]:
        """What the latents of fixed crops depend on; the VAE by the weights of its encoder."""
        config = self.config
        photos, encoder = hashlib.sha256(repr(self.faces.places).encode()), hashlib.sha256()
        for name, tensor in self.pipeline.vae.state_dict().items():
            if not name.startswith(("decoder.", "post_quant_conv.")):
                encoder.update(tensor.cpu().flatten().view(torch.uint8).numpy())
        data = {name: getattr(config.data, name) for name in ("resolution", "zoom", "flip", "crops")}
        return {**data, "photos": photos.hexdigest(), "vae": encoder.hexdigest(), "seed": config.seed}

    def _check_shards(self, adapter: FaceSnapConfig) -> None:
        """Raises [`InputError`] where a folder of shards does not give what the adapter is trained with."""
        config = self.config
        compares_photos = config.identity_loss.weight > 0 and config.identity_loss.reference == "photo"
        recognizer = config.identity_loss.recognizer if compares_photos else None
        for folder in config.data.shards:
            check_shards(adapter, read_settings(folder), folder, recognizer)
        for folder in config.data.validation:
            check_shards(adapter, read_settings(folder), folder, recognizer, config.validation.images > 0)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Within this context the adapter has the averaged weights."""
        if self.ema is None:
            yield
            return
        self.ema.store(self.parameters)
        self.ema.copy_to(self.parameters)
        try:
            yield
        finally:
            self.ema.restore(self.parameters)

    def _validate(self, step: int) -> dict[str, float]:
        config = self.config.validation
        if self.validation_samples is None or not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            return {}
        losses: dict[str, float] = {}
        with self._averaged(), self.accelerator.autocast():
            device = self.accelerator.device
            if config.batches:
                means = validation_losses(
                    self.objective, self.validation_samples, config.batches, self.config.batch_size, device
                )
                losses = {f"validation/{name}": value for name, value in means.items()}
            if config.images:
                sheet = validation_sheet(self.objective, self.validation_samples, config, self.config.seed, device)
                path = self.folder / "validation" / f"step-{step:07d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                with atomic_file(path) as temporary:
                    sheet.save(temporary)
                self._log_image(sheet, step)
        self._log(losses, step)
        self.accelerator.wait_for_everyone()
        return losses

    def _save_adapter(self, results: dict[str, float]) -> None:
        """The adapter with its averaged weights, ready for `load_facesnap_adapter`."""
        if self.accelerator.is_main_process:
            folder = self.folder / "adapter"
            folder.mkdir(exist_ok=True)
            section = describe_training(
                self.config, self.progress.step, len(self.faces), len(self.faces.people), results
            )
            card = folder / "README.md"
            name = self.config.hub.repo_id or self.folder.resolve().name
            write_model_card(card, self.pipeline.facesnap_config, type(self.pipeline).__name__, name, training=section)
            with self._averaged():
                self.pipeline.save_facesnap_adapter(folder)
        self.accelerator.wait_for_everyone()

    def _push(self) -> None:
        from ..adapter.hub import upload_adapter_folder

        name = self.config.hub.repo_id or self.folder.resolve().name
        upload_adapter_folder(self.folder / "adapter", name, private=self.config.hub.private)

    def _log(self, values: dict[str, float], step: int) -> None:
        if self.config.trackers:
            self.accelerator.log(values, step=step)
        if self.accelerator.is_main_process and values:
            line = ", ".join(f"{name} {value:.5g}" for name, value in values.items())
            with open(self.folder / "log.txt", "a") as file:
                file.write(f"step {step}: {line}\n")

    def _log_image(self, sheet: Any, step: int) -> None:
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                import numpy as np

                tracker.log_images({"validation": np.asarray(sheet)[None]}, step=step)

    def _learning_rates(self) -> dict[str, float]:
        return dict(zip(self.objective.parts, self.lr_scheduler.get_last_lr(), strict=True))

    def _tell_deepspeed_the_batch_size(self) -> None:
        # accelerate reads it off the DataLoader that it prepares; ours is not prepared, for it is exact by itself
        plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        if plugin is not None:
            plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = self.config.batch_size


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values with dotted names, lists as text: what trackers take."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat
