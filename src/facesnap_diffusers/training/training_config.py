"""The configuration of a training run: what `facesnap train` reads from a YAML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BeforeValidator, Field

from ..data.shard_settings import CropSize, ImageCrop, RecognitionCrop
from ..errors import InputError
from ..settings import dump_settings, override, parse_settings, read_yaml, strict_dataclass


Share = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Side = Annotated[int, Field(ge=8, multiple_of=8)]
Part = Literal["mixer", "ffrnet", "identity_attention"]
# YAML reads a bare no as False
Precision = Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(lambda value: "no" if value is False else value)]


@strict_dataclass()
class BaseConfig:
    r"""
    The frozen base model.

    Attributes:
        model (`str`): Hub repo, folder, or single `.safetensors` file of a Stable Diffusion model; `"nano"`: the one in this
            package.
        family (`str`): `"sd"` (1.x, 2.x and their like) or `"sdxl"`.
        revision (`str`, *optional*), variant (`str`, *optional*): As in `DiffusionPipeline.from_pretrained`.
        dtype (`str`, *optional*): Of its weights; that of `mixed_precision` by default. The VAE of SDXL stays in
            float32, which it needs, unless there is a `vae`.
        storage_dtype (`str`, *optional*): `"float8_e4m3fn"` keeps the weights of the frozen UNet in 8 bits, for half the memory
            of half precision; they are cast to `dtype` where they are used. Needs `gradient_checkpointing`.
        vae (`str`, *optional*): Hub repo or folder of a VAE in place of the base's own, in `dtype`: for SDXL one that does
            not overflow in half precision, such as `madebyollin/sdxl-vae-fp16-fix`, which takes half the memory and time.
        compile (`bool`): Compiles the frozen UNet with `torch.compile`, block by block: some minutes at the start, less time
            a step afterwards on NVIDIA GPUs.
        imports (`list[str]`): Modules to import first, for bases with components of your own.
    """

    model: str
    family: Literal["sd", "sdxl"] = "sd"
    revision: str | None = None
    variant: str | None = None
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    storage_dtype: Literal["float8_e4m3fn"] | None = None
    vae: str | None = None
    compile: bool = False
    imports: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.storage_dtype is not None and self.compile:
            raise InputError("storage_dtype and compile do not go together; leave out one of them")


@strict_dataclass()
class AdapterConfig:
    r"""
    The adapter that is trained.

    Attributes:
        start_from (`str`, *optional*): Adapter folder or Hub repo to continue with, or `"nano"` for the one in this package.
            A fresh one by default, which the settings below describe.
        warm_start (`str`, *optional*): Folder, file or Hub repo of an adapter of another kind (InstantID, IP-Adapter FaceID
            and its variants) that a fresh adapter starts from; see [`prepare_start`]. `face_encoder_id`, `face_embed_dim`,
            `normalized_embeds` and `num_tokens` are then that adapter's, and so are `image_encoder_id` and `image_crop`
            where it takes image features.
        warm_start_file (`str`, *optional*): Its file there, as `weight_name` of `load_facesnap_adapter`.
        warm_start_steps (`int`): Steps in which the mixer learns that adapter's tokens, before the first step of the run.
        train (`list[str]`): The parts that are trained, of `mixer`, `ffrnet` and `identity_attention`. Further parts of
            the adapter stay as they are.
        parts (`list[str]`): The parts of a fresh adapter.
        face_encoder_id (`str`), face_embed_dim (`int`, *optional*), normalized_embeds (`bool`): Of a fresh adapter, as in
            [`FaceSnapConfig`], as are the next ones. The shards must give what they say.
        image_encoder_id (`str`, *optional*), image_crop (`str`): Of the image encoder.
        landmark_style (`str`), num_tokens (`int`): Of FFRNet's picture, and of the mixer.
        bundle_image_encoder (`bool`): `image_encoder_id` is a local folder that becomes a part of the adapter.
        ffrnet_rank (`int`, *optional*): Rank of a small FFRNet, which shares the base's layers; a full one by default.
        mixer (`dict`): Sizes of the mixer that differ from its defaults.
        license (`str`, *optional*): Of the trained weights, for the model card.
    """

    start_from: str | None = None
    warm_start: str | None = None
    warm_start_file: str | None = None
    warm_start_steps: Count = 1000
    train: list[Part] = field(default_factory=lambda: ["mixer", "ffrnet", "identity_attention"])
    parts: list[Part] = field(default_factory=lambda: ["mixer", "ffrnet", "identity_attention"])
    face_encoder_id: str = "insightface/w600k_r50"
    face_embed_dim: Count | None = 512
    image_encoder_id: str | None = "openai/clip-vit-large-patch14"
    bundle_image_encoder: bool = False
    normalized_embeds: bool = True
    image_crop: ImageCrop = "head"
    landmark_style: Literal["facesnap72", "instantid5"] = "facesnap72"
    num_tokens: Count = 16
    mixer: dict[str, Any] = field(default_factory=dict)
    ffrnet_rank: Count | None = None
    license: str | None = None

    def __post_init__(self) -> None:
        if not self.train:
            raise InputError("train is empty; name the parts to train")
        if self.start_from is not None and self.warm_start is not None:
            raise InputError(
                "start_from and warm_start are both given; continue an adapter with the one, or start a new one with the other"
            )
        if self.warm_start_file is not None and self.warm_start is None:
            raise InputError("warm_start_file is given without warm_start; name its folder or repo there")
        unknown = sorted(set(self.train) - set(self.parts))
        if self.start_from is None and unknown:
            raise InputError(f"train has {unknown}, which parts does not contain; add them there")


@strict_dataclass()
class DataConfig:
    r"""
    What is trained on.

    Attributes:
        shards (`list[str]`): Folders that `facesnap prepare` wrote.
        validation (`list[str]`): The same folders, or others: of each, the people whom `facesnap prepare` has set aside;
            all, where it has set nobody aside.
        balanced (`bool`): An epoch has one photo of each person, the next one every time, so that somebody with a thousand
            photos counts as much as somebody with two; a photo without a label counts as a person. By default it has each
            photo once. People with a single photo, who are their own reference, then come more often.
        resolution (`int`): Side of the training images, in pixels.
        aspect_ratio_buckets (`list[tuple[int, int]]`, *optional*): Heights and widths of training images of about `resolution`²
            pixels. Each photo becomes an image of the size that is most like it in proportion, and all images of a step have
            one size; see [`AspectBuckets`]. By default all are square.
        zoom (`tuple[float, float]`): The target is cropped from the photo scaled to cover the image, times a number
            from this range, as far as the photo has the pixels: it is not enlarged to zoom in.
        flip (`float`): Share of targets that are mirrored.
        crops (`int`, *optional*): Number of crops of each photo. Their latents are computed once, before the
            first step, and kept in `output_dir/latents` (in float16, drawn once where the VAE has a distribution): steps
            neither decode photos nor need the VAE's encoder. By default every sample has a new crop.
        reference_flip (`float`), reference_jitter (`float`): Share of reference crops that are mirrored, and how far
            brightness, contrast and saturation of them change. They keep the image encoder from copying.
        landmarks (`str`): `"retargeted"`: the reference's proportions in the target's pose and expression, as the
            pipelines make them; `"detected"`: the target's own.
        caption (`str`): Of photos that have none.
        workers (`int`): Processes that read ahead, in each training process.
    """

    shards: Annotated[list[str], Field(min_length=1)]
    validation: list[str] = field(default_factory=list)
    balanced: bool = False
    resolution: Side = 512
    aspect_ratio_buckets: Annotated[list[tuple[Side, Side]], Field(min_length=1)] | None = None
    zoom: tuple[Annotated[float, Field(ge=1)], Annotated[float, Field(ge=1)]] = (1.0, 1.3)
    flip: Share = 0.5
    crops: Count | None = None
    reference_flip: Share = 0.5
    reference_jitter: Share = 0.1
    landmarks: Literal["retargeted", "detected"] = "retargeted"
    caption: str = "a photo of a person"
    workers: Annotated[int, Field(ge=0)] = 4

    def __post_init__(self) -> None:
        if self.zoom[0] > self.zoom[1]:
            raise InputError("zoom has its larger value first; write the smaller one first")
        if self.aspect_ratio_buckets is not None and self.crops is not None:
            raise InputError("crops are all of one size, aspect_ratio_buckets are not; leave one of them out")
        for height, width in self.aspect_ratio_buckets or []:
            if abs(height * width / self.resolution**2 - 1) > 0.25:
                raise InputError(
                    f"aspect_ratio_buckets has [{height}, {width}], far from the {self.resolution}² pixels of resolution;"
                    " change one of them"
                )


@strict_dataclass()
class DropoutConfig:
    r"""
    Shares of the samples in which a condition is left out, for classifier-free guidance and for robustness.

    Attributes:
        text (`float`), identity (`float`): Only the one is left out.
        both (`float`): Text and identity are left out.
        landmarks (`float`): FFRNet is left out, independently of text and identity.
    """

    text: Share = 0.05
    identity: Share = 0.05
    both: Share = 0.05
    landmarks: Share = 0.1

    def __post_init__(self) -> None:
        if self.text + self.identity + self.both > 1:
            raise InputError("text, identity and both add up to more than 1; lower them")


@strict_dataclass()
class LossConfig:
    r"""
    The diffusion loss.

    Attributes:
        min_snr_gamma (`float`, *optional*): Of the min-SNR weighting; without it all timesteps count the same.
        face_weight (`float`): Weight of the face's place in the image; 1: all places count the same.
        extra (`str`, *optional*): `package.module:function` of a further loss, called with the keyword arguments
            `objective` (the [`Objective`], which decodes latents and knows the noise schedule), `batch`,
            `identity_tokens` and `text_embeds` (both `(batch, tokens, width)`), `latents` and `predicted_latents` (the
            clean ones, and those implied by the prediction), `sampled_latents` (those that a few steps make of
            `batch["start_noise"]`, of the batch as [`Objective.sampled_batch`] has it; `None` where no samples are taken)
            and `step`; it returns a scalar that is added.
        extra_samples (`bool`): `extra` gets samples at every `identity_loss.every` steps, whether the identity loss takes
            some or not; all that `identity_loss` says of samples holds for them.
        align_semantic (`float`), align_layout (`float`): Weights of PuLID's alignment losses, which keep the prompt's say where
            the identity loss drives it out; see [`alignment_losses`].
        align_every (`int`): At every so many steps, with that many times the weights: they cost a forward pass of the UNet
            without a face.
    """

    min_snr_gamma: Positive | None = 5.0
    face_weight: Positive = 1.0
    extra: str | None = None
    extra_samples: bool = False
    align_semantic: NotNegative = 0.0
    align_layout: NotNegative = 0.0
    align_every: Count = 4

    def __post_init__(self) -> None:
        if self.extra_samples and self.extra is None:
            raise InputError("extra_samples is true without extra; name a function there, or leave extra_samples out")


@strict_dataclass()
class RecognizerConfig:
    r"""
    The recognizer of the identity loss; see [`load_network`] and [`FaceRecognizer`]. The defaults are InsightFace's.

    Attributes:
        network (`str`): ONNX file, exported program, or `package.module:function`.
        crop (`str`), size (`int`, *optional*): The crop that it takes, `"arcface"` or `"dlib"`, and its side in pixels; 112
            for ArcFace, 150 for dlib by default.
        mean (`float`), std (`float`), bgr (`bool`): The pixels that it takes.
        center (`str`, *optional*): NumPy file of the mean embedding of many people.
    """

    network: str
    crop: RecognitionCrop = "arcface"
    size: CropSize | None = None
    mean: float = 0.5
    std: Positive = 0.5
    bgr: bool = False
    center: str | None = None


@strict_dataclass()
class IdentityLossConfig:
    r"""
    L_id, `1 - cos` of face embeddings of the generated image and the reference.

    Attributes:
        weight (`float`): λ_id; 0 switches it off.
        recognizer ([`RecognizerConfig`], *optional*): Needed where the weight is not 0.
        reference (`str`): What the generated face is compared with. `"target"`: the recognizer's embedding of the target
            photo, at whose landmarks the generated face is looked for, so that a perfect reconstruction costs nothing
            (WithAnyone, Xu et al. 2025, arXiv 2510.14975, equation 4); `"photo"`: that of the reference, another photo of
            the person; `"embedding"`: the reference's embedding in the shards, for a recognizer that is the adapter's
            face encoder or imitates it.
        contrastive (`float`): Weight, beside `1 - cos`, of InfoNCE with the embeddings of other people as negatives (the same
            paper, equations 5 to 7); 0 switches it off.
        negatives (`int`), temperature (`float`): Of InfoNCE: how many people, one photo each, are embedded before the first
            step, and by what the cosines are divided.
        mode (`str`): `"prediction"`: on the clean image implied by the prediction for one noisy sample;
            `"few_step"`: on an accurate sample of a few steps from pure noise (the "lightning" branch of PuLID, Guo
            et al. 2024, arXiv 2404.16022, section 3.2), which is slower.
        min_snr (`float`): `"prediction"`: timesteps with a smaller signal-to-noise ratio are left out, where the
            predicted image is a blur.
        every (`int`): `"few_step"`: at every so many steps, with `every` times the weight.
        steps (`int`), gradient_steps (`int`): `"few_step"`: sampling steps (DDIM), and through how many of them, the
            last ones, the gradient goes.
        lora (`str`, *optional*): `"few_step"`: folder, file or Hub repo of a LoRA that makes the base good in `steps` steps
            of DDIM without guidance, as those of SDXL-Lightning and Hyper-SD do. Only the samples see it. Needs peft.
        lora_file (`str`, *optional*): Its file there, as `weight_name` of `load_lora_weights`.
        resolution (`int`, *optional*): `"few_step"`: side of the samples in pixels, at most `data.resolution`, which is the
            default. Samples of other proportions have about as many pixels.
        prompt (`str`, *optional*): `"few_step"`: of all samples, in place of their captions.
        start_step (`int`): The first step with this loss.
    """

    weight: NotNegative = 0.0
    recognizer: RecognizerConfig | None = None
    reference: Literal["embedding", "photo", "target"] = "embedding"
    contrastive: NotNegative = 0.0
    negatives: Count = 1024
    temperature: Positive = 0.1
    mode: Literal["prediction", "few_step"] = "prediction"
    min_snr: Positive = 1.0
    every: Count = 4
    steps: Count = 4
    gradient_steps: Count = 1
    lora: str | None = None
    lora_file: str | None = None
    resolution: Side | None = None
    prompt: str | None = None
    start_step: Annotated[int, Field(ge=0)] = 0

    def __post_init__(self) -> None:
        if self.gradient_steps > self.steps:
            raise InputError("gradient_steps is more than steps; lower it")
        if self.lora_file is not None and self.lora is None:
            raise InputError("lora_file is given without lora; name its folder or repo there")


@strict_dataclass()
class OptimizerConfig:
    r"""
    Attributes:
        name (`str`): `adamw`, `adamw_fused` (one kernel a step), `adamw_8bit` (bitsandbytes) or `adafactor`.
        learning_rate (`float` or `dict`): One, or one for each part: `{mixer: 1e-4, ffrnet: 1e-5, ...}`.
        betas (`tuple[float, float]`), epsilon (`float`), weight_decay (`float`): Of AdamW.
        lr_scheduler (`str`): As in `diffusers.optimization.get_scheduler`.
        warmup_steps (`int`): Steps in which the learning rate rises.
        max_grad_norm (`float`, *optional*): Gradients are scaled down to this norm.
    """

    name: Literal["adamw", "adamw_fused", "adamw_8bit", "adafactor"] = "adamw"
    learning_rate: Positive | dict[Part, Positive] = 1e-5
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.999)
    epsilon: Positive = 1e-8
    weight_decay: NotNegative = 1e-2
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant_with_warmup"
    warmup_steps: Annotated[int, Field(ge=0)] = 500
    max_grad_norm: Positive | None = 1.0


@strict_dataclass()
class ValidationConfig:
    r"""
    What is measured and shown during training, always the same: losses on fixed noise, images, and the likeness of sampled
    images, by which the best adapter is kept in `output_dir/best`.

    Attributes:
        every (`int`): Steps between.
        batches (`int`): Batches of the validation shards whose losses are averaged.
        images (`int`): Samples of which images are made, with the averaged weights; 0: none.
        judge (`str`, *optional*): What judges sampled images: a face encoder that [`default_analyzer`] knows, e.g.
            `dlib/face_recognition_resnet_model_v1`, or `package.module:function` of a function that returns a
            [`FaceAnalyzer`]. Choose one that took no part in training: a model that is trained to please a recognizer
            pleases it more than others.
        clip_model (`str`, *optional*): Folder or Hub repo of a `CLIPModel`, which says how much sampled images look like
            their prompts (CLIP-T); e.g. `openai/clip-vit-large-patch14`.
        people (`int`): People of whom judge and CLIP model see one image each.
        inference_steps (`int`), guidance_scale (`float`): Of the images.
        prompt (`str`, *optional*): Of the images; their captions by default.
    """

    every: Count = 1000
    batches: Annotated[int, Field(ge=0)] = 4
    images: Annotated[int, Field(ge=0)] = 4
    judge: str | None = None
    clip_model: str | None = None
    people: Count = 16
    inference_steps: Count = 20
    guidance_scale: NotNegative = 5.0
    prompt: str | None = None


@strict_dataclass()
class HubConfig:
    """
    Where the finished adapter goes: `push` uploads it to the Hub as `repo_id`, which only its owner sees unless `private`
    is false. Token and repo are tried before the first step.
    """

    push: bool = False
    repo_id: str | None = None
    private: bool = True


@strict_dataclass()
class TrainingConfig:
    r"""
    A training run.

    Attributes:
        output_dir (`str`): Folder of checkpoints, validation images, logs and the finished adapter.
        steps (`int`): Optimizer steps.
        batch_size (`int`): Samples of one process in one forward pass.
        gradient_accumulation (`int`): Forward passes to an optimizer step.
        seed (`int`): Of everything that is random: two runs of one config are the same.
        mixed_precision (`str`): `"no"`, `"fp16"` or `"bf16"`.
        gradient_checkpointing (`bool`): Computes activations twice, to save memory.
        allow_tf32 (`bool`): Faster, less exact float32 on NVIDIA GPUs.
        ema_decay (`float`): Of the averaged weights; 0 switches averaging off.
        checkpoint_every (`int`), keep_checkpoints (`int`): Steps between checkpoints, and how many are kept.
        max_skipped_steps (`int`): A step whose loss or gradient is not finite leaves the weights as they are; so many in a
            row stop the run.
        log_every (`int`): Steps over which the logged losses are averaged.
        resume (`bool`): Continues from the last undamaged checkpoint in `output_dir` if there is one, with the learning
            rate and the other settings of the optimizer that the config has now. Otherwise checkpoints that are there are
            moved to `output_dir/former-run-N`.
        trackers (`list[str]`): Of accelerate: `tensorboard`, `wandb`, ... One that fails does not end the run.
        data_statement (`str`, *optional*): What the data are and by what right they are used, for the model card.
    """

    output_dir: str
    base: BaseConfig
    data: DataConfig
    steps: Count
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    batch_size: Count = 4
    gradient_accumulation: Count = 1
    seed: int = 0
    mixed_precision: Precision = "no"
    gradient_checkpointing: bool = False
    allow_tf32: bool = True
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    identity_loss: IdentityLossConfig = field(default_factory=IdentityLossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    checkpoint_every: Count = 1000
    keep_checkpoints: Count = 3
    max_skipped_steps: Count = 20
    log_every: Count = 50
    resume: bool = True
    validation: ValidationConfig = field(default_factory=ValidationConfig)
    trackers: list[str] = field(default_factory=list)
    data_statement: str | None = None
    hub: HubConfig = field(default_factory=HubConfig)

    def __post_init__(self) -> None:
        if self.base.storage_dtype is not None and not self.gradient_checkpointing:
            raise InputError(
                "base.storage_dtype saves memory only with gradient_checkpointing; set it to true, or leave storage_dtype out"
            )
        if self.identity_loss.weight > 0 and self.identity_loss.recognizer is None:
            raise InputError("identity_loss.weight is not 0; name identity_loss.recognizer.network, or set it to 0")
        loss = self.identity_loss
        unused = [name for name in ("lora", "resolution", "prompt") if getattr(loss, name) is not None]
        if unused and loss.mode == "prediction" and not self.loss.extra_samples:
            raise InputError(
                f"identity_loss.{unused[0]} is of samples, and mode prediction takes none; set identity_loss.mode to few_step,"
                " or leave it out"
            )
        if loss.resolution is not None and loss.resolution > self.data.resolution:
            raise InputError("identity_loss.resolution is more than data.resolution; lower it")
        judges = [name for name in ("judge", "clip_model") if getattr(self.validation, name) is not None]
        if judges and not self.data.validation:
            raise InputError(
                f"validation.{judges[0]} judges pictures of data.validation, which is empty; name folders there, or leave it out"
            )
        if self.hub.push and self.hub.repo_id is None:
            raise InputError("hub.push is set without hub.repo_id; name the repo, as owner/name")
        if self.hub.push and not (self.data_statement or "").strip():
            raise InputError(
                "hub.push publishes an adapter without data_statement; say there what the photos are, and by what right they"
                " are used"
            )
        rates = self.optimizer.learning_rate
        missing = set(self.adapter.train) - set(rates) if isinstance(rates, dict) else set()
        if missing:
            raise InputError(f"optimizer.learning_rate has no value for {sorted(missing)}; add them")

    def to_yaml(self) -> str:
        return yaml.safe_dump(dump_settings(self), sort_keys=False, allow_unicode=True)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainingConfig:
    r"""
    Reads a config.

    Args:
        path (`str` or `Path`): A YAML file.
        overrides (`list[str]`): Values that replace those in the file: `"optimizer.learning_rate=1e-5"`.

    Raises:
        InputError: The file cannot be read, or a key or value is wrong; names the key.
    """
    return parse_settings(TrainingConfig, override(read_yaml(path), overrides), f"config {path}")
