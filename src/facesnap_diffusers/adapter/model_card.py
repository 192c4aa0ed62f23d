"""The model card of an adapter."""

import html
import json
import re
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from .config import FaceSnapConfig


_CARD = """---
{card_data}
---

# {name}

A [FaceSnap](https://huggingface.co/papers/2602.00627) adapter for 🧨 diffusers: portraits of a person from one photo and
a prompt, in one pass, on a frozen Stable Diffusion model{base}.

## Use

```py
from facesnap_diffusers import {pipeline}
from PIL import Image

pipe = {pipeline}.from_pretrained({base_model})
pipe.load_facesnap_adapter({repo_id})
image = pipe("portrait of a person as an astronaut", face_image=Image.open("photo.jpg")).images[0]
```

`pip install facesnap-diffusers`. As a custom pipeline, where this repo has a `pipeline.py`:

```py
from diffusers import DiffusionPipeline

pipe = DiffusionPipeline.from_pretrained({base_model}, custom_pipeline={repo_id}, trust_remote_code=True)
pipe.load_facesnap_adapter({repo_id})
```

| | |
|---|---|
| parts | {parts} |
| identity tokens | {num_tokens} |
| face recognizer | {face_encoder} |
| image encoder | {image_encoder} |
| base model family | {base_family} |

{training_heading}

{training}

## Intended use and limits

For pictures of people who agreed to it: yourself, models, characters that you own. Do not use it to deceive, to harass,
or to make sexual content of real people. A likeness is never exact, and training data makes it better for some people
than for others. Respect the license of the face recognizer{recognizer_license}.
"""


_TRAINING_HEADING = "## Training data and results"

_INSIGHTFACE = ": the model packs of insightface are for non-commercial research only"

_NO_TRAINING = "<!-- Say what it was trained on, for how long, and how it was measured. -->"


def write_model_card(
    path: Path,
    config: FaceSnapConfig,
    pipeline: str,
    repo_id: str,
    datasets: list[str] | None = None,
    training: str | None = None,
) -> None:
    """Writes a model card with the metadata that the Hub reads, in place of one that is there."""
    of_ffrnet = config.ffrnet_config
    same_license = of_ffrnet is None or of_ffrnet.license == config.license
    card_data = ModelCardData(
        base_model=config.base_model,
        base_model_relation="adapter" if config.base_model else None,
        library_name="diffusers",
        license=config.license if same_license else "other",
        pipeline_tag="text-to-image",
        datasets=datasets or None,
        widget=[{"text": "portrait of a person as an astronaut, detailed, soft light"}],
        tags=["facesnap", "facesnap-diffusers", "identity-preserving", "portrait", "controlnet"],
    )
    base_model = config.base_model or "a-base-model-of-this-family"
    ModelCard(
        _CARD.format(
            card_data=card_data.to_yaml(),
            name=_as_text(repo_id.split("/")[-1]),
            base=f" ({_as_text(config.base_model)})" if config.base_model else "",
            pipeline=pipeline,
            # JSON's strings are Python's, with whatever a name holds escaped
            base_model=json.dumps(base_model),
            repo_id=json.dumps(repo_id),
            parts=", ".join(config.parts),
            num_tokens=config.num_tokens
            if of_ffrnet is None
            else f"{config.num_tokens}, FFRNet {of_ffrnet.num_tokens}",
            face_encoder=_as_text(" and ".join(config.face_encoder_ids) or config.face_encoder_id),
            recognizer_license=_INSIGHTFACE if any("insightface/" in name for name in config.face_encoder_ids) else "",
            image_encoder=_as_text(" and ".join(config.image_encoder_ids) or "none"),
            base_family=_as_text(str(config.base_family)),
            training_heading=_TRAINING_HEADING,
            training=training or _NO_TRAINING,
        )
    ).save(path)


def _as_text(value: str) -> str:
    """A name as plain text of Markdown: in one line, without HTML, links, code or cells."""
    text = html.escape(" ".join(value.split()))
    return re.sub(r"([\\`*\[\]|!#~])", r"\\\1", text)


def read_training_section(path: Path) -> str | None:
    """What an adapter's model card says of its training, to be kept in a new one; `None` without a card of ours."""
    text = path.read_text() if path.is_file() else ""
    _, found, after = text.partition(f"{_TRAINING_HEADING}\n")
    return after.partition("\n## ")[0].strip() if found else None
