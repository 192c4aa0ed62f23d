"""Adapter folders on the Hub and on disk."""

from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from ..errors import AdapterError, one_line
from .config import (
    CONFIG_NAME,
    FFRNET_IMAGE_ENCODER_FOLDER,
    FFRNET_MIXER_FOLDER,
    IMAGE_ENCODER_FOLDER,
    PARTS,
)


def resolve_adapter_folder(
    name: str,
    subfolder: str | None = None,
    variant: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | None = None,
    force_download: bool = False,
    local_files_only: bool = False,
    config_only: bool = False,
) -> Path:
    """
    The local folder of an adapter that is given as a folder or as a Hub repo; downloads what is missing, with
    `config_only` no more than its `facesnap_config.json`.
    """
    if Path(name).is_dir():
        folder = Path(name)
    else:
        try:
            folder = Path(
                snapshot_download(
                    name,
                    allow_patterns=_file_patterns(subfolder, variant)[: 1 if config_only else None],
                    revision=revision,
                    token=token,
                    cache_dir=cache_dir,
                    force_download=force_download,
                    local_files_only=local_files_only,
                )
            )
        except HFValidationError:
            raise AdapterError(f"{name!r} is neither a folder nor the name of a Hub repo (owner/name)") from None
        except Exception as error:
            raise AdapterError(
                f"adapter {name!r} is not a local folder and could not be loaded from the Hub ({why_not_from_hub(error)});"
                " check the name and the connection"
            ) from error
    return folder / subfolder if subfolder else folder


def why_not_from_hub(error: BaseException) -> str:
    """Why the Hub gave nothing, in a few words; of other errors, what they say in one line."""
    chain = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None and cause not in chain:
        chain.append(cause)

    def is_a(kind: type[BaseException]) -> bool:
        return any(isinstance(link, kind) for link in chain)

    if is_a(OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set, and it was not downloaded before"
    if is_a(GatedRepoError):
        return "its authors ask you to accept their terms on its page, and to log in with hf auth login"
    if is_a(RepositoryNotFoundError):
        return "there is no such repo, or it is private"
    if is_a(LocalEntryNotFoundError):  # raised where there is no answer
        return f"no connection: {one_line(chain[-1])}"
    return one_line(error)


def upload_adapter_folder(
    folder: Path,
    repo_id: str,
    token: str | bool | None = None,
    private: bool | None = None,
    commit_message: str = "Upload FaceSnap adapter",
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Puts an adapter folder onto the Hub and returns the address of the commit."""
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    except Exception as error:
        raise AdapterError(
            f"the adapter is saved in {folder}, but could not be uploaded as {repo_id!r} ({one_line(error)});"
            " check repo_id, token and the connection"
        ) from error
    return commit.commit_url


def _file_patterns(subfolder: str | None, variant: str | None) -> list[str]:
    prefix = f"{subfolder}/" if subfolder else ""
    suffix = f".{variant}" if variant else ""
    encoders = (IMAGE_ENCODER_FOLDER, FFRNET_IMAGE_ENCODER_FOLDER)
    stems = dict.fromkeys(encoders, "model")
    stems |= dict.fromkeys((*PARTS, FFRNET_MIXER_FOLDER), "diffusion_pytorch_model")
    patterns = [f"{prefix}{CONFIG_NAME}", *(f"{prefix}{folder}/*.json" for folder in encoders)]
    for folder, stem in stems.items():
        patterns += [
            f"{prefix}{folder}/config.json",
            f"{prefix}{folder}/{stem}{suffix}.safetensors",
            f"{prefix}{folder}/{stem}{suffix}-*.safetensors",
            f"{prefix}{folder}/{stem}.safetensors.index{suffix}.json",
        ]
    return patterns
