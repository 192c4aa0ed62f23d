"""The part of a model card that only the trainer knows."""

from __future__ import annotations

from .training_config import TrainingConfig


def describe_training(config: TrainingConfig, step: int, photos: int, people: int, results: dict[str, float]) -> str:
    """What an adapter was trained on, for how long, with which losses and config, as Markdown."""
    statement = config.data_statement or (
        "No statement about the origin of the photos, or about the consent of the people in them, was given."
    )
    rows = "\n".join(f"| {name} | {value:.4f} |" for name, value in sorted(results.items()))
    table = f"| measure | value |\n|---|---|\n{rows}" if rows else "Nothing was measured during training."
    shown = f" of {people:,} labeled people" if people else ", without identity labels"
    return f"""{statement}

{photos:,} photos{shown}; {step:,} steps.

Losses at the end of training, on the samples that the run itself set aside or, where the name has no `validation`, on its
training samples:

{table}

<details><summary>Config</summary>

```yaml
{config.to_yaml()}```

</details>"""
