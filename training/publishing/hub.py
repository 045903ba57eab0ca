"""Pushes an artifact to a model repository of the Hugging Face Hub, with its card as ``README.md``.

`python -m service pull hf://OWNER/NAME` fetches it again, every file compared with the manifest. The token is that of
`huggingface_hub` (``HF_TOKEN``, or its login's), the address ``HF_ENDPOINT``.
"""

from __future__ import annotations

import warnings
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from modeling.artifact.manifest import MANIFEST, ArtifactError, check_files, one_line, read_manifest

README = "README.md"


class PublishError(ValueError):
    """A hub did not take an artifact; the message is one sentence."""


def push(
    folder: Path,
    repository: str,
    card: str,
    *,
    private: bool = True,
    revision: str = "main",
    endpoint: str | None = None,
) -> str:
    """Upload every file of an artifact and its card in one commit; returns the commit's address.

    Args:
        folder: of the artifact; each file is compared with its hash first.
        repository: ``OWNER/NAME``; it is made where it is not there.
        card: text of ``README.md``.
        private: visibility of a new repository.
        revision: branch to commit to.
        endpoint: address of the hub; None: ``HF_ENDPOINT`` or the public one.

    Raises:
        ArtifactError: the artifact is damaged, or holds a ``README.md`` of its own.
        PublishError: the hub cannot be reached, or refuses.
    """
    manifest = read_manifest(folder)
    check_files(folder, manifest)
    if README in manifest.files:
        raise ArtifactError(f"artifact {folder.name} holds a {README} of its own, and the card would replace it")
    operations = [CommitOperationAdd(README, card.encode())]
    operations += [CommitOperationAdd(name, str(folder / name)) for name in (MANIFEST, *sorted(manifest.files))]
    hub = HfApi(endpoint=endpoint)
    try:
        hub.create_repo(repository, private=private, exist_ok=True)
        with warnings.catch_warnings():
            # The catalog is a table, which belongs to the model here.
            warnings.filterwarnings("ignore", message="It seems that you are about to commit a data file")
            done = hub.create_commit(
                repository,
                operations=operations,
                commit_message=f"{manifest.recipe}, version {manifest.version}",
                revision=revision,
            )
    except Exception as error:  # the hub, the network and the library under the client have errors of their own
        raise PublishError(f"{repository} was not pushed: {one_line(str(error))[:300]}") from error
    return str(done.commit_url)
