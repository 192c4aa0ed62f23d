"""The training loop."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import math
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import torch
from accelerate import Accelerator
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from accelerate.utils import InitProcessGroupKwargs, ProjectConfiguration, set_seed
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..adapter.config import FaceSnapConfig
from ..adapter.model_card import write_model_card
from ..clip import ClipEncoder
from ..data.both_sides import people_on_both_sides
from ..data.folder_lock import FolderLock
from ..data.shards import PreparedFaces, read_settings
from ..errors import AdapterError, InputError, TrainingError, one_line
from ..files import atomic_file, atomic_folder
from ..models.landmark_predictor import load_landmark_predictor
from ..settings import dump_settings
from .base import adapter_config, load_pipeline, local_image_size
from .card import RunSummary, describe_training, device_name
from .checkpoints import Progress, checkpoint_folders, load_checkpoint, save_checkpoint, set_aside
from .health import (
    SpeedMeter,
    StopRequest,
    all_finite,
    check_sharding,
    ignore_stop_signals,
    in_any_process,
    kept_random_state,
)
from .latents import CropLatents
from .loss_means import LossMeans
from .objective import Objective
from .optimizers import check_optimizer, create_optimizer
from .publishing import check_repo, push
from .recognizer import check_embeddings, load_recognizer
from .samples import DeliveredErrors, ResumableBatchSampler, TrainingSamples, collate, delivered
from .sampling_lora import check_lora
from .shard_check import check_clip_crops, check_key_points, check_shards
from .training_config import DropoutConfig, TrainingConfig
from .validation import load_judge, to_device, validation_likeness, validation_losses, validation_sheet


logger = logging.getLogger(__name__)

_TIME = "time.json"
_VALIDATED = "validated.json"


@dataclass
class _Step:
    """Whether a step is finite, whether the run is to stop after it, the same in all processes, and its gradient's norm."""

    finite: bool = True
    stop: bool = False
    gradient_norm: float = 0.0


class Trainer:
    r"""
    Trains a FaceSnap adapter on a frozen base. In several processes (`accelerate launch`) each has one.

    Args:
        config ([`TrainingConfig`]): Of the run.

    Attributes:
        stop ([`StopRequest`]): Whether, and by which signal, `train` was asked to stop.

    Raises:
        InputError: The config names something that could not be loaded, the shards do not give what the adapter is
            trained with, accelerate is set up for FSDP or DeepSpeed, or the Hub repo cannot be written to; the last three
            before the base model is loaded.
    """

    def __init__(self, config: TrainingConfig):
        self.config = config
        self.folder = Path(config.output_dir)
        unknown = set(config.trackers) - set(LOGGER_TYPE_TO_CLASS)
        if unknown:
            raise InputError(
                f"trackers: {', '.join(sorted(unknown))} is unknown; choose some of {', '.join(LOGGER_TYPE_TO_CLASS)}"
            )
        try:
            self.accelerator = Accelerator(
                mixed_precision=config.mixed_precision,
                gradient_accumulation_steps=config.gradient_accumulation,
                log_with=config.trackers or None,
                project_config=ProjectConfiguration(
                    project_dir=str(self.folder), logging_dir=str(self.folder / "logs")
                ),
                # the others wait while the main process teaches a warm start, samples or pushes; NCCL's ten minutes are few
                kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(hours=2))],
            )
        except ImportError as error:  # DeepSpeed or Megatron, which check_sharding refuses where they are installed
            raise InputError(
                f"accelerate is set up for a library that is missing ({one_line(error)}); run accelerate config and choose"
                " multi-GPU (DDP)"
            ) from error
        self.stop = StopRequest()
        self._started, self._seconds_before = time.perf_counter(), 0.0
        check_sharding(self.accelerator.state)
        if config.hub.push and self.accelerator.is_main_process:
            check_repo(config.hub)
        self.clip = None
        if config.validation.clip_model is not None and config.data.validation and self.accelerator.is_main_process:
            device = self.accelerator.device
            self.clip = ClipEncoder(config.validation.clip_model, device, "validation.clip_model")
        if config.identity_loss.lora is not None and (config.identity_loss.weight > 0 or config.loss.extra_samples):
            check_lora(config.identity_loss.lora)
        check_optimizer(config.optimizer)
        recognizer = None
        if config.identity_loss.weight > 0 and config.identity_loss.recognizer is not None:
            recognizer = load_recognizer(config.identity_loss.recognizer).to(self.accelerator.device)
        self.judge = load_judge(config.validation.judge) if config.validation.judge else None
        if config.allow_tf32 and torch.cuda.is_available():
            torch.backends.cuda.matmul.allow_tf32 = True
        set_seed(config.seed)

        adapter = adapter_config(config)
        image_size = None if adapter is None else local_image_size(config, adapter)
        if adapter is not None:
            self._check_shards(adapter, image_size)
        self.faces = PreparedFaces(config.data.shards, "train")
        validation_faces = PreparedFaces(config.data.validation, "validation") if config.data.validation else None
        if validation_faces is not None and self.accelerator.is_main_process:
            self._warn_of_people_on_both_sides(validation_faces)
        self.pipeline = load_pipeline(config).to(self.accelerator.device)
        encoder = self.pipeline.face_image_encoder
        if adapter is None:
            self._check_shards(self.pipeline.facesnap_config, None if encoder is None else encoder.config.image_size)
        elif image_size is None and encoder is not None:  # all else has been checked
            for folder in (*config.data.shards, *config.data.validation):
                check_clip_crops(read_settings(folder), folder, encoder.config.image_size)

        if recognizer is not None and config.identity_loss.reference == "embedding":
            assert config.identity_loss.recognizer is not None
            check_embeddings(recognizer, config.identity_loss.recognizer.network, self.pipeline.facesnap_config)
        self.objective = Objective(self.pipeline, config.adapter.train, config.loss, config.identity_loss, recognizer)
        if config.base.compile and self.objective.sampling_unet is not self.pipeline.unet:
            self.objective.sampling_unet.compile_repeated_blocks()
        self.samples = self._samples(
            self.faces,
            config.dropout,
            config.seed,
            self.objective.extras,
            config.batch_size * config.gradient_accumulation * self.accelerator.num_processes,
        )
        self._warn_of_rare_sizes()
        if config.identity_loss.weight > 0 and config.identity_loss.contrastive > 0:
            by_crops = config.identity_loss.reference != "embedding"
            self.objective.set_negatives(*self.samples.negatives(config.identity_loss.negatives, by_crops))
        if config.data.crops is not None:
            count = len(self.faces) * config.data.crops
            self.samples.latents = CropLatents(self.folder / "latents", count, self._latent_settings())
        self.validation_samples = None
        if validation_faces is not None:
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
        self.progress = Progress(config.optimizer.name)
        self.ema = None
        registered: list[Any] = [self.progress, self.lr_scheduler]
        if config.ema_decay > 0:
            self.ema = EMAModel(self.parameters, decay=config.ema_decay, foreach=True)
            registered.append(self.ema)
        self.accelerator.register_for_checkpointing(*registered)

    def train(self) -> dict[str, float]:
        r"""
        Trains from the last undamaged checkpoint to the last step, and writes the adapter. SIGTERM and Ctrl-C save a
        checkpoint and end the run; `stop` says that they came.

        Returns:
            `dict[str, float]`: The last losses, and what the last validation measured.

        Raises:
            InputError: Another process trains in `output_dir`, or its checkpoints do not fit the config.
            TrainingError: The weights diverge, or a checkpoint cannot be written. The checkpoints before are whole.
        """
        with ExitStack() as stack:
            if self.accelerator.is_main_process:
                self.folder.mkdir(parents=True, exist_ok=True)
                stack.enter_context(FolderLock(self.folder))
            stack.enter_context(self.stop)
            self.accelerator.wait_for_everyone()
            return self._train()

    def _train(self) -> dict[str, float]:
        config, accelerator = self.config, self.accelerator
        if accelerator.is_main_process:
            for name in ("adapter", "best", "start"):
                for left in self.folder.glob(f".{name}.*"):  # by a run that was killed while it wrote them
                    shutil.rmtree(left, ignore_errors=True)
            with atomic_file(self.folder / "config.yaml") as temporary:
                temporary.write_text(config.to_yaml())
        self._start_trackers()
        results: dict[str, float] = {}
        if self._resume():
            self._validate_where_it_was_killed(results)
        elif accelerator.is_main_process:
            (self.folder / _VALIDATED).unlink(missing_ok=True)  # of a former run
        if self.samples.latents is not None:
            self._compute_latents(self.samples.latents)
        means = LossMeans()
        in_a_row, save_due, sound_batch = 0, False, None
        bar = tqdm(
            initial=self.progress.step, total=config.steps, unit="step", disable=not accelerator.is_local_main_process
        )
        batches = iter(self._batches(self.progress.step))
        speed = SpeedMeter(accelerator.device)
        while self.progress.step < config.steps:
            state = _Step()
            for _ in range(config.gradient_accumulation):
                with speed.waiting():
                    batch = to_device(delivered(next(batches)), accelerator.device)
                means.add(self._forward_backward(batch, state))
            finite, stop = state.finite, state.stop
            self.lr_scheduler.step()
            self.progress.step += 1
            step, last = self.progress.step, self.progress.step == config.steps
            if finite:
                in_a_row, sound_batch = 0, batch
                means.add({"gradient_norm": torch.tensor(state.gradient_norm)})
                if self.ema is not None:
                    self.ema.step(self.parameters)
            else:
                in_a_row += 1
                self.progress.skipped += 1
            bar.update()
            if step % config.log_every == 0 or last or stop:
                mean_losses = means.read(accelerator)
                results.update({name: value for name, value in mean_losses.items() if name != "gradient_norm"})
                rates = {f"learning_rate/{part}": rate for part, rate in self._learning_rates().items()}
                done = means.steps * config.batch_size * accelerator.num_processes
                health = {**speed.read(done), "skipped_steps": float(self.progress.skipped)}
                self._log({**mean_losses, **rates, **health}, step)
                bar.set_postfix({name: f"{value:.4g}" for name, value in mean_losses.items()})
                means = LossMeans()
            with speed.paused():
                save_due = save_due or step % config.checkpoint_every == 0 or last or stop
                validation_due = not stop and (step % config.validation.every == 0 or last)
                # weights that a step has just shown to be unusable are not saved: the next sound step is. One that was skipped
                # changed nothing, so that the last one may be saved.
                sound = False
                if (save_due or validation_due) and (finite or last or stop):
                    sound = self._is_sound(batch if sound_batch is None else sound_batch)
                    in_a_row += finite and not sound
                if save_due and sound:
                    self._save(results)
                    save_due = False
                if in_a_row >= config.max_skipped_steps or (last and not sound):
                    raise TrainingError(self._divergence(in_a_row))
                if stop:
                    break
                if validation_due:
                    self._measure(results, sound)
        bar.close()
        if self.stop:
            logger.warning("stopped at step %d; start again to continue", self.progress.step)
        elif config.hub.push and accelerator.is_main_process:
            push(self.folder / "adapter", config.hub)
        accelerator.wait_for_everyone()
        self._end_trackers()  # last: it ends the process group as well
        return results

    def _measure(self, results: dict[str, float], sound: bool) -> None:
        """Validates, keeps the best adapter, and says that this step's validation is done."""
        step = self.progress.step
        measured = self._validate(step)
        results.update(measured)
        if sound:
            self._keep_best({**results, **measured} if measured else {})
        self._renew_card(results)
        self._write_numbers(_VALIDATED, {"step": step, "best": self.progress.best})

    def _validate_where_it_was_killed(self, results: dict[str, float]) -> None:
        """A checkpoint is written before its step's validation: one that a kill left out is made up for."""
        step = self.progress.step
        due = step % self.config.validation.every == 0 or step == self.config.steps
        validated = _read_numbers(self.folder / _VALIDATED)
        if validated.get("step", 0) >= step:
            self.progress.best = validated.get("best")
            due = False
        if in_any_process(self.accelerator, due and self.accelerator.is_main_process)[0]:
            self._measure(results, sound=True)

    def _resume(self) -> bool:
        """Whether there was a checkpoint to go on from."""
        config, accelerator = self.config, self.accelerator
        if not config.resume:
            if accelerator.is_main_process:
                set_aside(self.folder)
            accelerator.wait_for_everyone()
            return False
        groups = self.optimizer.param_groups
        now = [{name: value for name, value in group.items() if name != "params"} for group in groups]
        base_rates = list(self.lr_scheduler.base_lrs)
        if not load_checkpoint(accelerator, self.folder):
            return False
        if self.progress.optimizer != config.optimizer.name:
            raise InputError(
                f"optimizer.name is {config.optimizer.name}, {self.folder} was trained with {self.progress.optimizer}; set it to"
                " that, or resume to false"
            )
        logger.info("resumed at step %d", self.progress.step)
        self._seconds_before = _read_numbers(self.folder / _TIME).get("seconds", 0.0)
        # a checkpoint brings its learning rates and the like; those of the config count
        self.lr_scheduler.base_lrs = base_rates
        factors = [factor(self.lr_scheduler.last_epoch) for factor in self.lr_scheduler.lr_lambdas]
        for group, settings, rate, factor in zip(self.optimizer.param_groups, now, base_rates, factors, strict=True):
            group.update(settings | {"lr": rate * factor})
        self.lr_scheduler._last_lr = [group["lr"] for group in self.optimizer.param_groups]
        if self.ema is not None:
            self.ema.decay = config.ema_decay
            self.ema.to(accelerator.device)
        return True

    def _forward_backward(self, batch: dict[str, Any], state: _Step) -> dict[str, torch.Tensor]:
        """One forward and backward pass; with the last of a step, the optimizer's, if all of the step is finite."""
        with self.accelerator.accumulate(self.model), self._attention_kernel():
            with self.accelerator.autocast():
                losses = self.model(batch, self.progress.step)
            self.accelerator.backward(losses["loss"])
            state.finite = state.finite and bool(torch.isfinite(losses["loss"]))
            if self.accelerator.sync_gradients:
                norm = self.accelerator.clip_grad_norm_(
                    self.parameters, self.config.optimizer.max_grad_norm or math.inf
                )
                state.gradient_norm = float(norm)
                bad = not (state.finite and math.isfinite(state.gradient_norm))
                bad, state.stop = in_any_process(self.accelerator, bad, bool(self.stop))
                state.finite = not bad
                # the gradient scaler of fp16 leaves steps out by itself, and must see them to scale less
                if state.finite or self.accelerator.scaler is not None:
                    self.optimizer.step()
                self.optimizer.zero_grad()
        return losses

    @torch.no_grad()
    def _is_sound(self, batch: dict[str, Any]) -> bool:
        """Whether weights and averaged weights are finite and give a finite prediction: whether they may be saved."""
        tensors = [*self.parameters, *(self.ema.shadow_params if self.ema is not None else [])]
        sound = all_finite(tensors)
        if sound:
            with kept_random_state(), self.accelerator.autocast(), self._attention_kernel():
                sound = bool(torch.isfinite(self.objective.prediction_error(batch)))
        return not in_any_process(self.accelerator, not sound)[0]

    def _divergence(self, in_a_row: int) -> str:
        last = checkpoint_folders(self.folder)
        advice = f"continue from {last[-1].name} or one before it" if last else "start again"
        return (
            f"loss, gradient or weights were not finite in {in_a_row} steps in a row, the last one step {self.progress.step};"
            f" {advice} with a lower optimizer.learning_rate"
        )

    def _save(self, results: dict[str, float]) -> None:
        """The adapter first: with the last checkpoint a run is complete."""
        self._save_adapter(results)
        save_checkpoint(self.accelerator, self.folder, self.progress.step, self.config.keep_checkpoints)
        self._write_numbers(_TIME, {"seconds": self._seconds()})

    def _write_numbers(self, name: str, values: dict[str, float | None]) -> None:
        """A small file beside the checkpoints, which a run can do without."""
        if not self.accelerator.is_main_process:
            return
        try:
            with atomic_file(self.folder / name) as temporary:
                temporary.write_text(json.dumps(values))
        except OSError as error:
            self._report(name, error)

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
            DeliveredErrors(self.samples),
            batch_sampler=batch_sampler,
            collate_fn=collate,
            num_workers=config.data.workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=config.data.workers > 0,
            worker_init_fn=ignore_stop_signals,
            # of its own: starting to read must not draw from the random state that checkpoints hold
            generator=torch.Generator(),
        )

    def _samples(
        self, faces: PreparedFaces, dropout: DropoutConfig, seed: int, extras: Collection[str], step_size: int = 1
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
            step_size=step_size,
        )

    def _warn_of_people_on_both_sides(self, validation: PreparedFaces) -> None:
        both = people_on_both_sides(self.faces, validation)
        if not both:
            return
        names = [f"{here} is {there}" if here != there else here for here, there in both[:3]]
        logger.warning(
            "data.validation has people who are trained on, so that it says little of others: %s%s; leave them out of one side",
            ", ".join(names),
            f" and {len(both) - 3} more" if len(both) > 3 else "",
        )

    def _warn_of_rare_sizes(self) -> None:
        buckets = self.samples.buckets
        if buckets is None or not self.accelerator.is_main_process:
            return
        for (height, width), count in zip(buckets.sizes, buckets.counts, strict=True):
            if 0 < count < buckets.step_size:
                logger.warning(
                    "data.aspect_ratio_buckets: [%d, %d] has %d photos, each of which comes several times in a step of %d;"
                    " leave that size out",
                    height,
                    width,
                    count,
                    buckets.step_size,
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

    def _check_shards(self, adapter: FaceSnapConfig, image_size: int | None) -> None:
        """
        Raises [`InputError`] where a folder of shards does not give what the adapter is trained with. `image_size`: side of
        the image encoder's pictures, in pixels, where it is known.
        """
        config = self.config
        compares_photos = config.identity_loss.weight > 0 and config.identity_loss.reference != "embedding"
        recognizer = config.identity_loss.recognizer if compares_photos else None
        for folder in (*config.data.shards, *config.data.validation):
            shows_reference = folder in config.data.validation and config.validation.images > 0
            settings, resolution = read_settings(folder), config.data.resolution
            check_shards(adapter, settings, folder, recognizer, shows_reference, resolution, image_size)
            check_key_points(adapter, folder)

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
        """What it measures is logged; whatever it raises is reported and does not end the run."""
        values: dict[str, float] = {}
        if self.validation_samples is not None and self.accelerator.is_main_process:
            with kept_random_state(), self._averaged(), self.accelerator.autocast():
                for measure in (self._validation_losses, self._validation_images, self._validation_likeness):
                    try:
                        measured = measure(self.validation_samples, step)
                    except Exception as error:
                        self._report(measure.__name__.strip("_").replace("_", " "), error)
                        continue
                    values |= {f"validation/{name}": value for name, value in measured.items()}
            self._log(values, step)
        self.accelerator.wait_for_everyone()
        return values

    def _validation_losses(self, samples: TrainingSamples, step: int) -> dict[str, float]:
        config, device = self.config, self.accelerator.device
        if config.validation.batches == 0:
            return {}
        return validation_losses(self.objective, samples, config.validation.batches, config.batch_size, device)

    def _validation_images(self, samples: TrainingSamples, step: int) -> dict[str, float]:
        config = self.config.validation
        if config.images:
            sheet = validation_sheet(self.objective, samples, config, self.config.seed, self.accelerator.device)
            self._show(sheet, step)
        return {}

    def _validation_likeness(self, samples: TrainingSamples, step: int) -> dict[str, float]:
        if self.judge is None and self.clip is None:
            return {}
        config = self.config
        return validation_likeness(self.objective, samples, config.validation, self.judge, config.seed, self.clip)

    def _keep_best(self, results: dict[str, float]) -> None:
        """The adapter whose sampled pictures have been most like their people, with a card of its own."""
        distance = results.get("validation/face_distance")
        (better,) = in_any_process(
            self.accelerator, distance is not None and (self.progress.best is None or distance < self.progress.best)
        )
        if better:
            self.progress.best = distance
            self._save_adapter(results, "best")

    def _show(self, sheet: PIL.Image.Image, step: int) -> None:
        path = self.folder / "validation" / f"step-{step:07d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as temporary:
            sheet.save(temporary)
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"validation": np.asarray(sheet)[None]}, step=step, **options)

    def _save_adapter(self, results: dict[str, float], name: str = "adapter") -> None:
        """The adapter with its averaged weights, ready for `load_facesnap_adapter`."""
        if self.accelerator.is_main_process:
            try:
                with atomic_folder(self.folder / name) as folder, self._averaged():
                    self.pipeline.save_facesnap_adapter(folder)
                    self._write_card(folder, results)
            except (OSError, RuntimeError, SafetensorError, AdapterError) as error:
                raise TrainingError(
                    f"the adapter cannot be written to {self.folder / name} ({one_line(error)}); make room and start again:"
                    " the run continues from the last checkpoint"
                ) from error
        self.accelerator.wait_for_everyone()

    def _write_card(self, folder: Path, results: dict[str, float]) -> None:
        if not self.accelerator.is_main_process or not folder.is_dir():
            return
        name = self.config.hub.repo_id or self.folder.resolve().name
        run = RunSummary(
            step=self.progress.step,
            skipped=self.progress.skipped,
            photos=len(self.faces),
            people=len(self.faces.people),
            processes=self.accelerator.num_processes,
            device=device_name(self.accelerator.device),
            hours=self._seconds() / 3600,
            sampler=type(self.pipeline.scheduler).__name__,
            results=results,
        )
        adapter = FaceSnapConfig.load(folder)  # as it is saved: without local paths
        section = describe_training(self.config, adapter, run)
        with atomic_file(folder / "README.md") as temporary:
            write_model_card(temporary, adapter, name, training=section)

    def _renew_card(self, results: dict[str, float]) -> None:
        """The card of the adapter with what has just been measured; an adapter without it is whole all the same."""
        try:
            self._write_card(self.folder / "adapter", results)
        except (OSError, AdapterError) as error:
            self._report("model card", error)

    def _seconds(self) -> float:
        """Time spent on the run so far, with what came before it was stopped."""
        return self._seconds_before + time.perf_counter() - self._started

    def _start_trackers(self) -> None:
        if not self.config.trackers:
            return
        try:
            self.accelerator.init_trackers("facesnap", config=_flat(dump_settings(self.config)))
        except Exception as error:
            self._report("trackers", error)
        missing = set(self.config.trackers) - {tracker.name for tracker in self.accelerator.trackers}
        if missing and self.accelerator.is_main_process:
            logger.warning("trackers %s are not installed or could not be started: nothing is sent to them", missing)

    def _end_trackers(self) -> None:
        try:
            self.accelerator.end_training()
        except Exception as error:
            self._report("trackers", error)

    def _log(self, values: dict[str, float], step: int) -> None:
        if self.accelerator.is_main_process and values:
            line = ", ".join(f"{name} {value:.5g}" for name, value in values.items())
            try:
                with open(self.folder / "log.txt", "a") as file:
                    file.write(f"step {step}: {line}\n")
            except OSError as error:
                self._report("log.txt", error)
        try:
            self.accelerator.log(values, step=step)
        except Exception as error:
            self._report("trackers", error)

    def _report(self, what: str, error: Exception) -> None:
        message = "step %d: %s failed (%s: %s); the run goes on"
        logger.warning(message, self.progress.step, what, type(error).__name__, one_line(error))
        logger.debug("the traceback", exc_info=error)

    def _learning_rates(self) -> dict[str, float]:
        return dict(zip(self.objective.parts, self.lr_scheduler.get_last_lr(), strict=True))


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested values with dotted names, lists as text: what trackers take."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = value if isinstance(value, (int, float, str, bool)) else str(value)
    return flat


def _read_numbers(path: Path) -> dict[str, float]:
    """A small JSON file that a run keeps beside its checkpoints; nothing where there is none."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
