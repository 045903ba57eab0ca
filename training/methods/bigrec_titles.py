"""Embeds the titles of a catalog with the base model, and caches the vectors for other runs on the same titles."""

from __future__ import annotations

import hashlib
from pathlib import Path

from rich.console import Console
from rich.progress import Progress
from safetensors.numpy import load_file
from torch import nn

from modeling.artifact.atomic import replaced_folder
from modeling.artifact.tensor_files import save_arrays
from modeling.encoder.prompt import TitleTokens
from modeling.generation.title_space import TitleSpace
from modeling.inference.int8_linear import dtype_of
from training.loop.budget import timed
from training.loop.fit import Precision

VECTORS = "vectors.safetensors"


def read_space(
    body: nn.Module,
    tokens: TitleTokens,
    begin: list[int],
    *,
    sha256: str | None,
    cache: Path | None,
    precision: Precision,
    console: Console,
) -> TitleSpace:
    """The title space of a catalog.

    Args:
        body: the base model without its head.
        tokens: of the titles.
        begin: token ids before every title.
        sha256: of the base model's weights; None: vectors are not cached.
        cache: folder of cached vectors, named by weights, tokens and precision; None: vectors are not cached.
        precision: to compute in; that of the run.
        console: for progress.
    """
    folder = None
    if sha256 is not None and cache is not None:
        decides = (sha256, begin) if precision == "fp32" else (sha256, begin, precision)
        digest = hashlib.sha256(repr(decides).encode())
        digest.update(tokens.offsets.tobytes() + tokens.tokens.tobytes())
        folder = cache / f"titles-{digest.hexdigest()[:16]}"
        if (folder / VECTORS).exists():
            return TitleSpace(body, load_file(folder / VECTORS)["vectors"], begin)
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task(f"reading {len(tokens)} titles with the base model", total=len(tokens))
        progress = timed(bar, task, "reading titles")
        space = TitleSpace.of_catalog(body, tokens, begin, dtype=dtype_of(precision), progress=progress)
    if folder is not None:
        with replaced_folder(folder, "new") as work:
            save_arrays({"vectors": space.vectors_NH.cpu().numpy()}, work / VECTORS)
    return space
