"""Uploads saved folders to the Hub, with our card. A card that the repository already has is left as it is.

transformers' own upload would replace the card that `save_pretrained` has written by a general one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, ModelCard

CARD = "README.md"


def push_folder(
    save: Callable[[Path], object],
    repo_id: str,
    *,
    card: str | None = None,
    tags: Sequence[str] | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Upload what `save` writes to a folder. Returns the address of the commit.

    card: the README.md for a repository that has none. tags: added to its header. The other arguments are those of
    transformers' `push_to_hub`.
    """
    api = HfApi(token=token)
    repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None and not create_pr:
        api.create_branch(repo_id, branch=revision, exist_ok=True)
    with TemporaryDirectory() as name:
        folder = Path(name)
        save(folder)
        if api.file_exists(repo_id, CARD):
            (folder / CARD).unlink(missing_ok=True)
        elif card is not None:
            written = ModelCard(card)
            written.data["tags"] = [*(written.data.get("tags") or []), *(tags or [])]
            written.save(folder / CARD)
        commit = api.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            commit_message=commit_message or "Upload with llm_bridge",
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    return str(commit)
