"""The parts of the base model, all stock classes: tokenizer, text encoder, UNet and scheduler."""

from __future__ import annotations

import json

from diffusers import DDIMScheduler, UNet2DConditionModel
from people.captions import vocabulary
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer


TEXT_WIDTH = 128
TEXT_LENGTH = 48
IMAGE_SIZE = 128
LATENT_CHANNELS, LATENT_SIZE = 16, 16


def create_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of the captions is one token; other words fall into pieces and letters."""
    end_of_word = "</w>"
    trainer_model = Tokenizer(models.BPE(end_of_word_suffix=end_of_word))
    trainer_model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer_model.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=100_000,
        min_frequency=1,
        initial_alphabet=alphabet,
        end_of_word_suffix=end_of_word,
        show_progress=False,
    )
    trainer_model.train_from_iterator(vocabulary(), trainer)
    merges = [tuple(pair) for pair in json.loads(trainer_model.to_str())["model"]["merges"]]
    symbols = sorted(alphabet)
    # numbered in an order of their own: the trainer's differs from run to run, for it breaks ties at random
    tokens = symbols + [symbol + end_of_word for symbol in symbols] + sorted(a + b for a, b in merges)
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(
        vocab={token: index for index, token in enumerate(tokens)}, merges=merges, model_max_length=TEXT_LENGTH
    )


def create_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=2 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def create_unet(channels: tuple[int, int] = (128, 96)) -> UNet2DConditionModel:
    """Wide where a latent is a patch of 8×8 pixels, whose details it must draw; attention at half that resolution."""
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        mid_block_type="UNetMidBlock2DCrossAttn",
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def create_scheduler() -> DDIMScheduler:
    """v-prediction with zero terminal signal-to-noise ratio (Lin et al. 2024, arXiv 2305.08891)."""
    return DDIMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        steps_offset=1,
    )
