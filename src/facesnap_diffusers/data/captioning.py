"""Captions of photos, from a model that transformers loads."""

from __future__ import annotations

from typing import Any

import PIL.Image
import torch

from ..errors import FaceSnapError, InputError, MissingDependencyError, expanded, one_line


PROMPT = (
    "Describe this photo in one sentence of at most 40 words, as a prompt for an image generator: the kind of photo, what the"
    " person does and wears, expression, place, light and colors. Do not name the person."
)
PROMPT_WITHOUT_FACE = "Say nothing of hair, beard, skin, eyes, age, ethnicity and the shape of the face."
MOST_TOKENS = 75  # what CLIP's text encoders read of a prompt


class Captioner:
    r"""
    Captions photos with a model that `AutoModelForImageTextToText` and `AutoProcessor` load without code of its own, greedily:
    the same photo has the same caption on the same hardware.

    Models without a chat template, such as BLIP, BLIP-2 and GIT, are given the photo alone, or with a prompt, with which the
    caption begins. Those with one, such as LLaVA, SmolVLM and Qwen2.5-VL, are asked [`PROMPT`] or another prompt.

    Args:
        name (`str`): Folder or Hub repo.
        prompt (`str`, *optional*): What the model is asked.
        leave_out_face (`bool`): A chat model is told besides to say nothing of what the face looks like.
        device (`str`): Where it runs. On a CPU in float32, elsewhere in the type of its file.

    Raises:
        InputError: The model cannot be loaded, or the device cannot be used.
        MissingDependencyError: The model needs a library that is not installed.
    """

    def __init__(self, name: str, prompt: str | None = None, leave_out_face: bool = False, device: str = "cpu"):
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.name = name
        options = {"trust_remote_code": False}
        dtype = torch.float32 if device == "cpu" else "auto"
        try:
            self.processor: Any = AutoProcessor.from_pretrained(expanded(name), **options)
            self.model: Any = AutoModelForImageTextToText.from_pretrained(expanded(name), dtype=dtype, **options)
        except ImportError as error:
            raise MissingDependencyError(
                f"caption_model {name!r} needs another library ({one_line(error)}); install it, or choose another model"
            ) from error
        except Exception as error:  # many kinds for files that are no model
            raise InputError(
                f"caption_model {name!r} cannot be loaded ({type(error).__name__}: {one_line(error)}); name a folder or Hub"
                " repo that transformers loads as AutoModelForImageTextToText"
            ) from error
        try:
            self.model.eval().requires_grad_(False).to(device)
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise InputError(
                f"device {device!r} cannot be used for caption_model {name!r} ({one_line(error)}); choose other devices, or a"
                " smaller model"
            ) from error
        self.is_chat = getattr(self.processor, "chat_template", None) is not None
        self.prompt = prompt
        if self.is_chat:
            self.prompt = prompt or PROMPT
            if leave_out_face:
                self.prompt = f"{self.prompt} {PROMPT_WITHOUT_FACE}"

    def check(self, image: PIL.Image.Image) -> None:
        """Captions a picture; raises [`InputError`] where that fails, with what to do."""
        try:
            self(image)
        except FaceSnapError:
            raise
        except Exception as error:  # each model and processor has its own kinds
            raise InputError(
                f"caption_model {self.name!r} cannot caption a picture ({type(error).__name__}: {one_line(error)}); give the"
                " prompt that it expects as caption_prompt, or choose another model"
            ) from error

    @torch.no_grad()
    def __call__(self, image: PIL.Image.Image) -> str | None:
        """The caption of an RGB picture of any size, in one line; `None` where the model says nothing."""
        if self.is_chat:
            content = [{"type": "image", "image": image}, {"type": "text", "text": self.prompt}]
            inputs = self.processor.apply_chat_template(
                [{"role": "user", "content": content}],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
            )
        else:
            texts = {} if self.prompt is None else {"text": self.prompt}
            inputs = self.processor(images=image, **texts, return_tensors="pt")
        inputs = inputs.to(self.model.device, self.model.dtype)
        tokens = self.model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=MOST_TOKENS)[0]
        if self.is_chat and not self.model.config.is_encoder_decoder:
            tokens = tokens[inputs["input_ids"].shape[1] :]
        text = self.processor.decode(tokens, skip_special_tokens=True)
        return " ".join(text.split()) or None
