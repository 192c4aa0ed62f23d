"""Signatures that name every argument, the stock pipeline's and ours: tools, notebooks and `help()` read them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any


def stock_arguments(method: Callable[..., Any]) -> list[str]:
    """The names of the arguments of a stock pipeline's method, without `self` and `**kwargs`."""
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [name for name, p in inspect.signature(method).parameters.items() if p.kind not in kinds and name != "self"]


def with_stock_signature(cls: Any, name: str) -> Callable[..., Any]:
    r"""
    The method `name` of a pipeline class whose bases are a mixin of ours and a stock pipeline, with a signature and annotations
    that have the stock pipeline's arguments in its order, then ours. What is given by position is taken as the stock pipeline
    does. The docstring says where the stock arguments are described.
    """
    method = getattr(cls, name)
    stock_class = next(base for base in cls.__mro__ if base.__module__.startswith("diffusers.") and name in vars(base))
    stock = vars(stock_class)[name]
    stock_parameters = [p for p in inspect.signature(stock).parameters.values() if p.kind is not p.VAR_KEYWORD]
    positional = [p.name for p in stock_parameters[1:]]
    of_stock = {p.name for p in stock_parameters}
    # what the stock pipeline without ControlNet takes besides, which serves calls without a face
    plain = inspect.signature(getattr(cls._plain_class, name)).parameters.values()
    extra_parameters = [
        p.replace(kind=p.KEYWORD_ONLY) for p in plain if p.name not in of_stock and p.kind is not p.VAR_KEYWORD
    ]
    of_stock |= {p.name for p in extra_parameters}
    own_parameters = [
        p for p in inspect.signature(method).parameters.values() if p.name not in of_stock and p.kind is p.KEYWORD_ONLY
    ]

    @functools.wraps(method)
    def with_positions(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(args) > len(positional):
            raise TypeError(f"{name}() takes {len(positional)} positional arguments but {len(args)} were given")
        by_position = dict(zip(positional, args, strict=False))
        twice = sorted(by_position.keys() & kwargs.keys())
        if twice:
            raise TypeError(f"{name}() got multiple values for argument {twice[0]!r}")
        # what a callback sees is the copy that one call runs on; a call of it is one of the pipeline itself
        pipe = self._origin if name == "__call__" and self._origin is not None else self
        return method(pipe, **by_position, **kwargs)

    signature = inspect.Signature(
        [*stock_parameters, *extra_parameters, *own_parameters],
        return_annotation=inspect.signature(method).return_annotation,
    )
    with_positions.__signature__ = signature  # type: ignore[attr-defined]
    with_positions.__annotations__ = {
        **{p.name: p.annotation for p in signature.parameters.values() if p.annotation is not p.empty},
        "return": signature.return_annotation,
    }
    with_positions.__doc__ = (
        f"{inspect.getdoc(method) or ''}\n\nAll other arguments are described in diffusers, at"
        f" `{stock_class.__name__}.{name}`."
    )
    return with_positions
