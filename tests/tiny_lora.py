"""A LoRA with random weights for a tiny base model."""

import copy
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model_state_dict


#: What diffusers calls the file.
FILE = "pytorch_lora_weights.safetensors"
#: Those of distillation LoRAs, and `conv_in`.
LAYERS = [
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2", "conv1", "conv2", "conv_shortcut",
    "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj", "conv_in",
]  # fmt: skip


def write_lora(pipeline, folder: Path, **options) -> Path:
    """A LoRA of rank 2 for the linear and convolution layers of the UNet; `options` are of `save_lora_weights`."""
    trained = copy.deepcopy(pipeline.unet)
    torch.manual_seed(4)
    trained.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights=False, target_modules=LAYERS))
    writer = StableDiffusionXLPipeline if hasattr(pipeline, "text_encoder_2") else StableDiffusionPipeline
    writer.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(trained), **options)
    return folder
