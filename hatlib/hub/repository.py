"""Repositories of the Hub: fetching a saved model at one commit, uploading one, and saying what went wrong."""

import re
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hatlib.errors import HatlibError
from hatlib.hub.arguments import CONFIG_NAME

__all__ = ["WEIGHTS_NAME", "download_model", "split_revision", "upload_model", "weights_file"]

WEIGHTS_NAME = "model.safetensors"
TIMM_WEIGHTS_NAME = "pytorch_model.bin"  # what timm saves by default


def weights_file(folder: Path) -> Path:
    """The weights of a saved directory, ours or timm's; they may not be there."""
    timms = folder / TIMM_WEIGHTS_NAME
    return timms if timms.is_file() and not (folder / WEIGHTS_NAME).is_file() else folder / WEIGHTS_NAME


def split_revision(repo: str, revision: str | None = None) -> tuple[str, str | None]:
    """'org/repo@revision' -> ('org/repo', 'revision'); a revision that is given goes before."""
    repo, _, tail = repo.partition("@")
    return repo, revision or tail or None


def download_model(repo: str, revision: str | None, with_weights: bool = True) -> Path:
    """Folder with the files of a repository, all from one commit.

    Raises:
        HatlibError: if the Hub does not have it, or can't be reached and it is not in the cache.
    """
    try:
        config = Path(hf_hub_download(repo, CONFIG_NAME, revision=revision))
        if with_weights:
            commit = config.parent.name if re.fullmatch("[0-9a-f]{40}", config.parent.name) else revision
            try:
                hf_hub_download(repo, WEIGHTS_NAME, revision=commit)
            except EntryNotFoundError:
                hf_hub_download(repo, TIMM_WEIGHTS_NAME, revision=commit)
        return config.parent
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise _explained(error, repo, revision) from error


def upload_model(
    repo_id: str,
    save: Callable[[Path], None],
    folder: Path,
    *,
    revision: str | None = None,
    token: str | None = None,
    private: bool | None = None,
    commit_message: str,
) -> str:
    """Uploads what `save(folder)` writes; gives the commit's URL. `save` finds the repository's present card there.

    Raises:
        HatlibError: if the Hub refuses.
    """
    api = HfApi(token=token)
    try:
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        try:
            card = hf_hub_download(repo_id, "README.md", revision=revision, token=token)
            (folder / "README.md").write_bytes(Path(card).read_bytes())
        except (EntryNotFoundError, RevisionNotFoundError):
            pass
        save(folder)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=folder, revision=revision, commit_message=commit_message
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise _explained(error, repo_id, revision) from error
    return str(getattr(commit, "commit_url", commit))


def _explained(error: Exception, repo: str, revision: str | None) -> HatlibError:
    where = f"{repo!r}" + (f" at revision {revision!r}" if revision else "")
    if isinstance(error, GatedRepoError):
        return HatlibError(
            f"Access to {where} must be asked for on its page on the Hub, and then needs `hf auth login`."
        )
    status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else None
    if isinstance(error, RepositoryNotFoundError) or status in (401, 403):
        return HatlibError(f"The Hub has no repository {repo!r}, or it is private: then log in with `hf auth login`.")
    if isinstance(error, RevisionNotFoundError):
        return HatlibError(f"{repo!r} has no revision {revision!r}.")
    if isinstance(error, LocalEntryNotFoundError):
        return HatlibError(f"{where} can't be reached and is not in the cache; go online, or load a saved directory.")
    if isinstance(error, EntryNotFoundError):
        return HatlibError(f"{where} holds no model of hatlib: it lacks {CONFIG_NAME} or {WEIGHTS_NAME}.")
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return HatlibError(f"The Hub could not serve {where}: {reason}")
