"""Loads a model and serves the app: limits on what visitors send, nothing on disk."""

from __future__ import annotations

from typing import Any

import torch
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ..errors import AdapterError, InputError
from ..faces.photo import set_photo_policy
from ..faces.pose import HeadPose
from ..nano.demo import STEPS
from ..nano.model import load_nano_pipeline, nano_people
from ..nano.portrait_box import portrait_box
from ..pipelines.auto import AutoFaceSnapPipeline
from .photos import APP_POLICY
from .picture_settings import ONE_FACE
from .studio import Defaults, Studio


MAX_REQUEST = 40 * 2**20  # bytes: a few scaled-down photos and a start picture with its mask

#: What the page needs below `gradio_api`. Other routes of gradio take files, or write what a session holds to disk.
API_ROUTES = ("queue", "run", "cancel", "reset", "heartbeat", "startup-events", "app_id", "info", "theme.css")


def nano_studio(device: str = "cpu", dtype: torch.dtype = torch.float32) -> Studio:
    """The studio of the nano model, with its people as samples."""
    pipe = load_nano_pipeline(dtype=dtype).to(device)
    defaults = Defaults(
        prompt="a photo of a person, neutral, red shirt, blue background",
        negative_prompt="",
        steps=STEPS,
        guidance_scale=1.0,
        face_box=_rounded(portrait_box(HeadPose())),
    )
    return Studio(pipe, defaults, nano_people())


def checkpoint_studio(
    base: str, adapter: str | None = None, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Studio:
    r"""
    The studio of any base model with an adapter.

    Args:
        base (`str`): Hub repo, folder or single file of Stable Diffusion 1.x, 2.x or XL.
        adapter (`str`, *optional*): Hub repo or folder; without it, the default of the base model's family.
        device (`str`), dtype (`torch.dtype`): Where and how the model runs.

    Raises:
        AdapterError: The adapter cannot be loaded, or is for another family.
    """
    single_file = base.endswith((".safetensors", ".ckpt"))
    load = AutoFaceSnapPipeline.from_single_file if single_file else AutoFaceSnapPipeline.from_pretrained
    pipe: Any = load(base, dtype=dtype)
    pipe.load_facesnap_adapter(adapter)
    pipe.to(device)
    if pipe.facesnap_config is None:
        raise AdapterError(f"no adapter is loaded on {base}; name one with --adapter")
    defaults = Defaults(
        prompt="portrait photo of a person in a sunlit garden, detailed, soft light",
        negative_prompt="blurry, deformed, low quality",
        steps=25,
        guidance_scale=5.0,
        face_box=ONE_FACE,
    )
    return Studio(pipe, defaults, base=base, adapter=adapter)


class RequestLimits:
    """Refuses what the page does not need, uploads as files among it, and requests that are too large."""

    def __init__(self, app: ASGIApp, max_bytes: int = MAX_REQUEST):
        self.app = app
        self.max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        _, is_api, route = scope["path"].partition("/gradio_api/")
        is_needed = route.split("/")[0] in API_ROUTES if is_api else scope["method"] in ("GET", "HEAD")
        if not is_needed:
            await PlainTextResponse("this page has no such route; uploads as files are off", 403)(scope, receive, send)
            return
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > self.max_bytes:
            await PlainTextResponse("the request is too large", 413)(scope, receive, send)
            return
        received = 0

        async def limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.max_bytes:  # sent in pieces, without a length
                return {"type": "http.disconnect"}
            return message

        await self.app(scope, limited, send)


def serve(
    studio: Studio,
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    share: bool = False,
    open_browser: bool = False,
    queue_size: int = 32,
    wait: bool = True,
) -> Any:
    r"""
    Serves the app. Photos from visitors are taken from memory alone: URLs and paths are refused in this process.

    Args:
        studio ([`Studio`]): The model.
        host (`str`): The address to listen on; by default nobody else's machine reaches it.
        port (`int`, *optional*): A free one from 7860 on by default.
        share (`bool`): Whether gradio makes a public address for it.
        open_browser (`bool`): Whether to open it here.
        queue_size (`int`): How many visitors may wait for a picture.
        wait (`bool`): Whether to serve until the process is stopped; else returns the page, which has a `close`.

    Raises:
        InputError: The port is taken, or host and port cannot be listened on.
    """
    import gradio as gr

    from .layout import WIDGETS, build_page

    set_photo_policy(APP_POLICY)
    page = build_page(studio, queue_size)
    fonts = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]  # none is fetched from elsewhere
    try:
        page.launch(
            server_name=host,
            server_port=port,
            share=share,
            inbrowser=open_browser,
            prevent_thread_lock=not wait,
            quiet=not wait,
            ssr_mode=False,
            footer_links=[],
            theme=gr.themes.Default(font=fonts[0], font_mono=fonts[1]),
            css_paths=[WIDGETS / "app.css"],
            app_kwargs={"middleware": [Middleware(RequestLimits)]},
        )
    except (OSError, OverflowError) as error:
        raise InputError(
            f"{host}, port {port}, cannot be used ({error}); choose others with --host and --port"
        ) from None
    return page


def _rounded(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    left, top, right, bottom = (round(side, 3) for side in box)
    return left, top, right, bottom
