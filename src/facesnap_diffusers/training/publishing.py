"""The Hub repo of the finished adapter: tried before the first step, filled after the last one."""

from __future__ import annotations

import logging
from pathlib import Path

from huggingface_hub import HfApi

from ..adapter.hub import upload_adapter_folder
from ..errors import AdapterError, InputError, one_line
from .training_config import HubConfig


logger = logging.getLogger(__name__)


def check_repo(config: HubConfig) -> None:
    r"""
    Creates the repo, or looks at the one that is there.

    Raises:
        InputError: The token may not do that, or the repo is public and `config.private` is set.
    """
    assert config.repo_id is not None
    api = HfApi()
    try:
        repo_id = api.create_repo(config.repo_id, private=config.private, exist_ok=True).repo_id
        api.auth_check(repo_id, write=True)  # a repo that is there already may be read with tokens that cannot write
        is_private = api.model_info(repo_id).private
    except Exception as error:  # of huggingface_hub and of the connection
        raise InputError(
            f"hub.repo_id {config.repo_id!r} cannot be written to ({one_line(error)}); log in with hf auth login, correct"
            " the name, or set hub.push to false"
        ) from None
    if config.private and not is_private:
        raise InputError(
            f"hub.repo_id {config.repo_id!r} is a public repo; set hub.private to false to publish there, or name another"
        )


def push(folder: Path, config: HubConfig) -> str | None:
    """Uploads an adapter folder; the address of the commit, or `None` where that fails: the training is not lost by it."""
    assert config.repo_id is not None
    try:
        return upload_adapter_folder(folder, config.repo_id, private=config.private)
    except AdapterError as error:
        logger.warning("%s", error)
        return None
