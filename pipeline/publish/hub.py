"""The Hugging Face hub: what goes up, and what is said where it cannot."""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from huggingface_hub import HfApi, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from pipeline.artifacts import contract
from pipeline.publish import card


def check_name(repo: str) -> None:
    """Raises:
    ValueError: it is no name of a repository, with its owner.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise ValueError(f"{repo!r} is no name of a repository: {str(error).splitlines()[0]}") from None
    if "/" not in repo:
        raise ValueError(f"{repo!r} names no owner; write it as owner/name")


def files(folder: Path, text: str) -> dict[str, int]:
    """What goes up, with bytes: the folder's files and the card, and nothing that a download has left beside them."""
    sizes = {
        path.relative_to(folder).as_posix(): path.stat().st_size
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in contract.INT4.beside
    }
    return dict(sorted((sizes | {card.NAME: len(text.encode())}).items()))


def upload(folder: Path, repo: str, text: str, public: bool) -> str:
    """Create a repository where there is none, and upload a folder and its card in one commit; returns its address.

    A repository that is there already stays as visible as it is.

    Raises:
        ValueError: there is no token, the hub cannot be reached, or it refuses.
    """
    if get_token() is None:
        raise ValueError("there is no token for the hub; `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    try:
        with _with_card(folder, text) as whole:
            api.create_repo(repo, private=not public, exist_ok=True)
            commit = api.upload_folder(repo_id=repo, folder_path=whole, commit_message="Upload the model and its card")
    except OfflineModeIsEnabled:
        raise ValueError("the hub is out of reach: HF_HUB_OFFLINE is set") from None
    except HfHubHTTPError as error:
        raise ValueError(f"the hub refuses {repo}: {str(error).strip().splitlines()[0]}") from None
    except (httpx2.TransportError, OSError) as error:
        if getattr(error, "filename", None) or getattr(error, "errno", None) == errno.ENOSPC:
            raise  # a file's trouble, and none of the hub's
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"the hub at {api.endpoint} is out of reach: {reason[0]}") from None
    return str(commit.repo_url)


@contextmanager
def _with_card(folder: Path, text: str) -> Iterator[Path]:
    """A folder of links to the files of another, and the card: nothing is written into that one."""
    with tempfile.TemporaryDirectory() as scratch:
        whole = Path(scratch) / folder.resolve().name
        shutil.copytree(folder, whole, copy_function=_link, ignore=_beside(folder))
        (whole / card.NAME).write_text(text, encoding="utf-8")
        yield whole


def _beside(folder: Path) -> Callable[[str, list[str]], list[str]]:
    """What copytree leaves out: at the top of a folder, what is none of the export's."""
    return lambda where, names: [name for name in names if name in contract.INT4.beside] if where == str(folder) else []


def _link(source: str, target: str) -> None:
    os.symlink(os.path.abspath(source), target)
