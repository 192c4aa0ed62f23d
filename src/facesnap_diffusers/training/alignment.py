"""The alignment loss: with a face the UNet attends to the prompt as it does without one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class TextAttention:
    """Queries `(batch, positions, channels)`, keys `(batch, text, channels)` and heads of each layer that attends to the text."""

    queries: dict[int, torch.Tensor] = field(default_factory=dict)
    keys: dict[int, torch.Tensor] = field(default_factory=dict)
    heads: list[int] = field(default_factory=list)


@contextlib.contextmanager
def recorded_text_attention(unet: nn.Module) -> Iterator[TextAttention]:
    """Within this context, what the last forward pass of `unet` has of the attention to the text is recorded."""
    layers: list[Any] = [layer for name, layer in unet.named_modules() if name.endswith("attn2")]
    record = TextAttention(heads=[layer.heads for layer in layers])

    def keep(kind: dict[int, torch.Tensor], number: int) -> Callable[..., None]:
        # a small FFRNet shares layers with the UNet, which comes after it and has the last word
        return lambda module, inputs, output: kind.update({number: output})

    hooks = []
    for number, layer in enumerate(layers):
        hooks.append(layer.to_q.register_forward_hook(keep(record.queries, number)))
        hooks.append(layer.to_k.register_forward_hook(keep(record.keys, number)))
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def alignment_losses(with_face: TextAttention, without: TextAttention) -> tuple[torch.Tensor, torch.Tensor]:
    r"""
    PuLID (Guo et al. 2024, arXiv 2404.16022, equations 2 and 3), as mean squares in place of norms, averaged over the layers:
    how far the face changes what each token of the text attends to, `softmax(K Qᵀ / √d) Q`, and the queries themselves.

    Returns:
        The semantic and the layout loss, scalars.
    """
    semantic, layout = [], []
    for number, heads in enumerate(with_face.heads):
        pairs = [(record.queries[number].float(), record.keys[number].float()) for record in (with_face, without)]
        responses = [_response(query, key, heads) for query, key in pairs]
        semantic.append(F.mse_loss(responses[0], responses[1]))
        layout.append(F.mse_loss(pairs[0][0], pairs[1][0]))
    return torch.stack(semantic).mean(), torch.stack(layout).mean()


def _response(query: torch.Tensor, key: torch.Tensor, heads: int) -> torch.Tensor:
    """`softmax(K Qᵀ / √d) Q` of each head, `(batch, heads, text, channels of a head)`."""
    query, key = (values.unflatten(-1, (heads, -1)).transpose(1, 2) for values in (query, key))
    return F.scaled_dot_product_attention(key, query, query)
