"""`facesnap app`: the web app."""

from typing import Annotated

import typer

from .generate import Dtype


def app(
    base: Annotated[
        str | None, typer.Option(help="Base model: Hub repo, folder or single file. Default: the nano model.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Adapter for --base: Hub repo or folder.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, mps, ... Default: a GPU if there is one.")] = None,
    dtype: Annotated[Dtype | None, typer.Option(help="Default: float16 on a GPU, float32 on a CPU.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 lets other machines in.")] = "127.0.0.1",
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Default: a free one from 7860 on.")] = None,
    share: Annotated[bool, typer.Option("--share", help="Make a public address for it, through gradio.")] = False,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    queue: Annotated[int, typer.Option(help="How many visitors may wait for a picture.")] = 32,
) -> None:
    """Open the web app: photos, prompts, pose and expression by sliders, on the nano model or on your own."""
    import gradio  # noqa: F401  (first, so that the message on what to install comes at once)
    import torch

    from ..errors import InputError
    from ..preflight import (
        base_folder,
        best_device,
        best_dtype,
        check_adapter,
        check_device,
        check_host,
        quiet_libraries,
    )

    if adapter is not None and base is None:
        raise InputError("--adapter is for another base model; name it with --base")
    if queue < 1:
        raise InputError(f"--queue is {queue}; choose at least 1")
    check_host(host)
    device = device or best_device()
    check_device(device)
    quiet_libraries()
    from ..app.server import checkpoint_studio, nano_studio, serve  # what it imports gives advice on packages

    if base is not None:
        base_folder(base)
        check_adapter("--adapter", adapter)
    precision = getattr(torch, best_dtype(device) if dtype is None else dtype.value)
    studio = nano_studio(device, precision) if base is None else checkpoint_studio(base, adapter, device, precision)
    serve(studio, host, port, share=share, open_browser=open_browser, queue_size=queue)
