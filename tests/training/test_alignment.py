"""The alignment loss: what a face changes in the attention to the text."""

import dataclasses

import pytest
import test_objective
import torch

from facesnap_diffusers.training.alignment import TextAttention, alignment_losses, recorded_text_attention


def test_equals_the_equations():
    generator = torch.Generator().manual_seed(0)
    heads, records = 2, []
    for _ in range(2):
        queries = [torch.randn(3, 10, 8, generator=generator), torch.randn(3, 4, 12, generator=generator)]
        keys = [torch.randn(3, 5, 8, generator=generator), torch.randn(3, 5, 12, generator=generator)]
        records.append(TextAttention(dict(enumerate(queries)), dict(enumerate(keys)), [heads, heads]))
    semantic, layout = alignment_losses(*records)
    expected_semantic, expected_layout = 0.0, 0.0
    for layer in range(2):
        responses = []
        for record in records:
            query, key = record.queries[layer], record.keys[layer]
            size = query.shape[-1] // heads
            response = torch.empty(3, 5, query.shape[-1])
            for sample in range(3):
                for head in range(heads):
                    part = slice(head * size, (head + 1) * size)
                    q, k = query[sample, :, part], key[sample, :, part]
                    response[sample, :, part] = (k @ q.T / size**0.5).softmax(dim=-1) @ q
            responses.append(response)
        expected_semantic += (responses[0] - responses[1]).square().mean() / 2
        expected_layout += (records[0].queries[layer] - records[1].queries[layer]).square().mean() / 2
    assert torch.allclose(semantic, expected_semantic, rtol=1e-4) and torch.allclose(
        layout, expected_layout, rtol=1e-5
    )
    assert alignment_losses(records[0], records[0]) == (0, 0)


@pytest.fixture
def objective():
    found = test_objective.TestObjective.objective()
    found.loss = dataclasses.replace(found.loss, align_semantic=0.6, align_layout=0.1, align_every=2)
    return found


def test_what_is_recorded_is_the_attention_to_the_text(objective):
    """All layers once, the text's keys without the identity tokens, nothing after the context."""
    batch = test_objective.TestObjective.batch()
    conditions = objective.encode_conditions(batch)
    unet = objective.pipeline.unet
    layers = [layer for name, layer in unet.named_modules() if name.endswith("attn2")]
    with recorded_text_attention(unet) as record:
        objective.predict(batch["latents"], batch["timestep"], conditions)
    assert len(record.queries) == len(record.keys) == len(layers) == len(record.heads) > 1
    for number, layer in enumerate(layers):
        torch.testing.assert_close(record.keys[number], layer.to_k(conditions["text_embeds"]))
    objective.predict(batch["latents"], batch["timestep"], conditions)
    assert len(record.queries) == len(layers)


def test_part_of_the_loss(objective):
    batch = test_objective.TestObjective.batch()
    losses = objective(batch, step=2)
    parts = losses["diffusion"] + objective.identity_loss.weight * losses["identity"]
    expected = parts + 2 * (0.6 * losses["align_semantic"] + 0.1 * losses["align_layout"])
    assert torch.allclose(losses["loss"], expected) and losses["align_semantic"] > 0 and losses["align_layout"] > 0
    assert "align_layout" not in objective(batch, step=1)

    # without identity attention and FFRNet there is nothing that a face could change
    for residual in objective.pipeline.ffrnet.controlnet_down_blocks:
        torch.nn.init.zeros_(residual.weight), torch.nn.init.zeros_(residual.bias)
    block = objective.pipeline.ffrnet.controlnet_mid_block
    torch.nn.init.zeros_(block.weight), torch.nn.init.zeros_(block.bias)
    objective.pipeline.identity_attention = None
    losses = objective(batch, step=2)
    assert losses["align_semantic"] < 1e-12 and losses["align_layout"] < 1e-12


def test_gradient_reaches_the_adapter(objective):
    objective.identity_loss = dataclasses.replace(objective.identity_loss, weight=0.0)
    batch = test_objective.TestObjective.batch()
    losses = [objective(batch, step=step)["loss"] for step in (1, 2)]
    for part, module in objective.parts.items():
        parameters = list(module.parameters())
        gradients = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in losses]
        changed = [
            not torch.equal(a, b) for a, b in zip(*gradients) if a is not None and b is not None and (a != 0).any()
        ]
        assert any(changed), part
