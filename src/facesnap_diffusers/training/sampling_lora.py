"""The UNet of the identity loss's samples: the base's weights, and a LoRA that only it has."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from diffusers.utils import is_peft_available

from ..base_models import is_sdxl
from ..errors import InputError, MissingDependencyError, expanded, one_line


def check_lora(lora: str) -> None:
    """Raises [`MissingDependencyError`] without peft, [`InputError`] where there is no such folder or file."""
    if not is_peft_available():
        raise MissingDependencyError('identity_loss.lora needs peft: pip install "facesnap-diffusers[lora]"')
    is_repo = lora.count("/") == 1 and not lora.startswith(("/", "~", "."))
    if not is_repo and not Path(expanded(lora)).exists():
        raise InputError(
            f"identity_loss.lora {lora!r} is no file or folder; name one, or a Hub repo as owner/name with lora_file"
        )


def unet_with_lora(pipeline: Any, lora: str, weight_name: str | None = None) -> Any:
    r"""
    A UNet with every weight of the pipeline's, the very same in memory, and with a frozen LoRA. The pipeline's own UNet has
    none, nor has a small FFRNet, which shares the layers of that one.

    It is not one UNet whose LoRA is switched on and off: with gradient checkpointing the backward pass computes again what
    was computed with the LoRA, when it would be off.

    Args:
        pipeline (`DiffusionPipeline`): Of the Stable Diffusion family, on its device; its UNet may be stored in fewer bits.
            Where the UNet's blocks are compiled, the new one's are not yet.
        lora (`str`): Folder, file or Hub repo, in any format that `load_lora_weights` reads.
        weight_name (`str`, *optional*): The file there.

    Raises:
        InputError: It cannot be loaded, is for another UNet, or changes more than a UNet.
        MissingDependencyError: Without peft.
    """
    check_lora(lora)
    unet, name = pipeline.unet, lora if weight_name is None else f"{lora}/{weight_name}"
    options = {"unet_config": unet.config} if is_sdxl(unet) else {}  # as in `load_lora_weights`
    twin = copy.deepcopy(unet, {id(tensor): tensor for tensor in (*unet.parameters(), *unet.buffers())})
    try:
        weights, alphas, metadata = pipeline.lora_state_dict(
            str(expanded(lora)), weight_name=weight_name, return_lora_metadata=True, **options
        )
        others = sorted({key.split(".")[0] for key in weights} - {"unet"})
        if others or not weights:
            raise InputError(f"it has {', '.join(others) or 'no weights'}, and must change the UNet alone")
        pipeline.load_lora_into_unet(
            weights, alphas, twin, adapter_name="sampling", metadata=metadata, low_cpu_mem_usage=True
        )
        found = sum(".lora_" in parameter for parameter, _ in twin.named_parameters())
        if found != len([key for key in weights if not key.endswith(".alpha")]):
            raise InputError("it is for another UNet")
    except Exception as error:  # diffusers and peft raise many kinds for damaged and unknown content
        raise InputError(
            f"identity_loss.lora {name!r} could not be loaded ({one_line(error)}); use another"
        ) from error
    return twin.requires_grad_(False).eval()
