"""The model card of an adapter."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from ..errors import InputError, one_line
from .config import FaceSnapConfig
from .public import NANO_FAMILY


_CARD = """---
{card_data}
---

# {name}

A [FaceSnap](https://huggingface.co/papers/2602.00627) adapter for 🧨 diffusers: portraits of a person from one photo and
a prompt, in one pass, on a frozen Stable Diffusion model{base}.

{pictures}## Use

```sh
pip install {install}
```

```py
{snippet}
```

{analyzer}{custom_pipeline}| | |
|---|---|
| parts | {parts} |
| scales | {scales} |
| identity tokens | {num_tokens} |
| face recognizer | {face_encoder} |
| image encoder | {image_encoder} |
| base model family | {base_family} |

{evaluation}{training_heading}

{training}

## Intended use and limits

For pictures of people who agreed to it: yourself, models, characters that you own. Do not use it to deceive, to harass,
or to make sexual content of real people. A likeness is never exact, and training data makes it better for some people
than for others. Respect the license of the face recognizer{recognizer_license}.
"""

# the repo's name is all that it takes where the adapter says which base model it belongs to
_SNIPPET = """from facesnap_diffusers import AutoFaceSnapPipeline

pipe = AutoFaceSnapPipeline.from_pretrained({repo_id})
image = pipe("portrait of a person as an astronaut", face_image="photo.jpg").images[0]"""

_SNIPPET_WITH_BASE = """from facesnap_diffusers import AutoFaceSnapPipeline

pipe = AutoFaceSnapPipeline.from_pretrained({base_model})
pipe.load_facesnap_adapter({repo_id})
image = pipe("portrait of a person as an astronaut", face_image="photo.jpg").images[0]"""

_SNIPPET_ON_NANO = """from facesnap_diffusers import load_nano_pipeline

pipe = load_nano_pipeline()
pipe.load_facesnap_adapter({repo_id})
call = {{"num_inference_steps": 4, "guidance_scale": 1.0}}
image = pipe("a photo of a person, smiling", face_image="photo.jpg", **call).images[0]"""

_CUSTOM_PIPELINE = """As a custom pipeline, where this repo has a `pipeline.py`:

```py
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({base_model}, custom_pipeline={repo_id}, trust_remote_code=True)
pipe.load_facesnap_adapter({repo_id})
```

"""

_PICTURES_HEADING = "## Pictures"

_EVALUATION_HEADING = "## Evaluation"

_TRAINING_HEADING = "## Training data and results"

_INSIGHTFACE = ": the model packs of insightface are for non-commercial research only"

_OWN_RECOGNIZER = """It takes embeddings of {face_encoder}, which this package does not bring: set `pipe.face_analyzer` to a
`FaceAnalyzer` of it.

"""

_NO_TRAINING = "<!-- Say what it was trained on, for how long, and how it was measured. -->"


def write_model_card(
    path: Path,
    config: FaceSnapConfig,
    repo_id: str,
    datasets: list[str] | None = None,
    training: str | None = None,
    pictures: str | None = None,
    evaluation: str | None = None,
    eval_results: Sequence[EvalResult] = (),
) -> None:
    r"""
    Writes a model card with the metadata that the Hub reads, in place of one that is there.

    Args:
        path (`Path`): The file.
        config ([`FaceSnapConfig`]): Of the adapter.
        repo_id (`str`): Its name on the Hub.
        datasets (`list[str]`, *optional*): What it was trained on, by names of the Hub.
        training (`str`, *optional*), pictures (`str`, *optional*), evaluation (`str`, *optional*): What the sections of
            these names say, as Markdown.
        eval_results (`Sequence[EvalResult]`): What was measured, for the Hub's `model-index`.
    """
    of_ffrnet = config.ffrnet_config
    same_license = of_ffrnet is None or of_ffrnet.license == config.license
    name = repo_id.split("/")[-1]
    card_data = ModelCardData(
        base_model=config.base_model,
        base_model_relation="adapter" if config.base_model else None,
        library_name="diffusers",
        license=config.license if same_license else "other",
        pipeline_tag="text-to-image",
        datasets=datasets or None,
        widget=[{"text": "portrait of a person as an astronaut, detailed, soft light"}],
        tags=["facesnap", "facesnap-diffusers", "identity-preserving", "portrait", "controlnet"],
        model_name=name if eval_results else None,
        eval_results=list(eval_results) or None,
    )
    encoders = config.face_encoder_ids or [config.face_encoder_id]
    is_insightface = any(encoder.startswith("insightface/") for encoder in encoders)
    is_dlib = any(encoder.startswith("dlib/") for encoder in encoders)
    on_nano = config.base_model is None and config.base_family == NANO_FAMILY
    snippet = _SNIPPET if config.base_model else _SNIPPET_ON_NANO if on_nano else _SNIPPET_WITH_BASE
    # JSON's strings are Python's, with whatever a name holds escaped
    names = {
        "base_model": json.dumps(config.base_model or "a-base-model-of-this-family"),
        "repo_id": json.dumps(repo_id),
    }
    ModelCard(
        _CARD.format(
            card_data=card_data.to_yaml(),
            name=as_text(name),
            base=f" ({as_text(config.base_model)})" if config.base_model else "",
            pictures=_section(_PICTURES_HEADING, pictures),
            install='"facesnap-diffusers[dlib]"' if is_dlib else "facesnap-diffusers",
            snippet=snippet.format(**names),
            custom_pipeline="" if on_nano else _CUSTOM_PIPELINE.format(**names),
            analyzer=""
            if is_insightface or is_dlib
            else _OWN_RECOGNIZER.format(face_encoder=as_text(config.face_encoder_id)),
            parts=", ".join(config.parts),
            scales=", ".join(f"{name.removesuffix('_scale')} {value:g}" for name, value in config.scales.items()),
            num_tokens=config.num_tokens
            if of_ffrnet is None
            else f"{config.num_tokens}, FFRNet {of_ffrnet.num_tokens}",
            face_encoder=as_text(" and ".join(encoders)),
            recognizer_license=_INSIGHTFACE if is_insightface else "",
            image_encoder=as_text(" and ".join(config.image_encoder_ids) or "none"),
            base_family=as_text(str(config.base_family)),
            evaluation=_section(_EVALUATION_HEADING, evaluation),
            training_heading=_TRAINING_HEADING,
            training=training or _NO_TRAINING,
        )
    ).save(path)


def _section(heading: str, text: str | None) -> str:
    return f"{heading}\n\n{text}\n\n" if text else ""


def as_text(value: str) -> str:
    """A name as plain text of Markdown: in one line, without HTML, links, code or cells."""
    text = html.escape(" ".join(value.split()))
    return re.sub(r"([\\`*\[\]|!#~])", r"\\\1", text)


def read_sections(path: Path) -> dict[str, str]:
    """
    What an adapter's model card says of its `training`, `pictures` and `evaluation`, to be kept in a new one: arguments of
    [`write_model_card`]. Empty without a card of ours. Raises [`InputError`] where the card is not UTF-8.
    """
    try:
        text = path.read_text(encoding="utf-8") if path.is_file() else ""
    except ValueError as error:
        raise _unreadable(path, error) from None
    names = {_TRAINING_HEADING: "training", _PICTURES_HEADING: "pictures", _EVALUATION_HEADING: "evaluation"}
    sections: dict[str, list[str]] = {}
    name, in_code = None, False
    for line in text.splitlines():
        in_code ^= line.startswith("```")
        if line.startswith("## ") and not in_code:
            name = names.get(line.rstrip())
        elif name is not None:
            sections.setdefault(name, []).append(line)
    return {name: "\n".join(lines).strip() for name, lines in sections.items()}


def read_eval_results(path: Path) -> list[EvalResult]:
    """The `model-index` of an adapter's model card; empty where there is none. Raises [`InputError`] for a wrong head."""
    try:
        return list(ModelCard.load(path).data.eval_results or []) if path.is_file() else []
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> InputError:
    return InputError(f"model card {path} cannot be read ({one_line(error)}); correct it or remove it")
