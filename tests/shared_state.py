"""Everything that the calls of a pipeline share, in a form that can be compared."""

import torch

from facesnap_diffusers._upstream import SHOWN_AFTER_A_CALL


def snapshot(pipe) -> dict:
    """The pipeline's attributes and components: modules, their classes, hooks and tensors, scheduler and tokenizer state."""
    # what a call shows of itself afterwards, as the stock pipelines do, no other call reads
    kept = {name: value for name, value in vars(pipe).items() if name not in SHOWN_AFTER_A_CALL}
    state = {f"attribute {name}": _plain(value) for name, value in kept.items()}
    for name, component in pipe.components.items():
        if isinstance(component, torch.nn.Module):
            for path, module in component.named_modules():
                state[f"{name}.{path}"] = (id(module), type(module), _plain(vars(module)))
        elif component is not None:
            state[name] = (id(component), _plain(vars(component)))
        backend = getattr(component, "_tokenizer", None)
        if backend is not None:
            state[f"{name} settings"] = (backend.padding, backend.truncation)
    return state


def changes(before: dict, after: dict) -> list[str]:
    """The names of what differs between two snapshots."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _plain(value):
    """A value by its content where that is simple, by its identity elsewhere; tensors by place, type and version."""
    if isinstance(value, torch.Tensor):
        return (id(value), value.data_ptr(), value.dtype, value.device, value._version, value.requires_grad)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return id(value)
