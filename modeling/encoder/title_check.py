"""Whether an artifact reads a title today as it was read in training.

A catalog's titles are read once, offline, and stored as vectors or tokens; a free title is read when it is asked about.
Both must come out alike, or a history of free titles is noise. Two things are checked when an artifact is loaded: that
the stored map of the whitening is one (`read_map`), and that stored titles, read again, are what is stored
(`check_titles`, `check_title_tokens`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from modeling.artifact.manifest import ArtifactError
from modeling.encoder.prompt import FreeItem, TitleTokens
from modeling.encoder.user_encoder import UserEncoder
from modeling.text import plain_text

TITLES_CHECKED = 3
LEAST_COSINE = 0.99
"""Of a title's vector read today with the stored one: other processors stay far above, another map far below."""
MOST_CORRELATION = 1e-3
"""Of two columns of a whitening's map, which are orthogonal up to the rounding of fp32."""


def read_map(stored_CD: NDArray[np.float32], name: str) -> tuple[NDArray[np.float32], bool]:
    """The map of a whitening as it was fitted, and whether the stored one had to be put in order.

    Artifacts that were written before schema version 2 may hold the map's elements in column order, under the shape of
    row order. The columns of the fitted map are orthogonal, so it is known which of the two it is, and nothing is lost.

    Raises:
        ArtifactError: the columns are orthogonal in neither order.
    """
    if _orthogonal(stored_CD):
        return stored_CD, False
    ordered_CD = np.ascontiguousarray(stored_CD.reshape(stored_CD.shape[::-1]).T)
    if _orthogonal(ordered_CD):
        return ordered_CD, True
    raise ArtifactError(
        f"parts/text.safetensors of {name}: the columns of 'map' are not orthogonal, so it is no whitening of titles, "
        "and free titles would be read as noise; train the artifact again"
    )


def _orthogonal(map_CD: NDArray[np.float32]) -> bool:
    norms_D = np.linalg.norm(map_CD.astype(np.float64), axis=0)
    if not (np.isfinite(norms_D).all() and norms_D.all()):
        return False
    unit_CD = map_CD / norms_D
    off_DD = np.abs(unit_CD.T @ unit_CD - np.eye(map_CD.shape[1]))
    return bool(off_DD.max(initial=0.0) < MOST_CORRELATION)


def check_titles(
    encoder: UserEncoder, titles: Sequence[str], name: str, samples: Mapping[int, str] | None = None
) -> None:
    """Read a few titles of the catalog again and compare with what is stored of them; brings in the text backbone.

    Args:
        encoder: reads free text.
        titles: of the catalog, in row order.
        name: of the artifact, for the message.
        samples: texts by row that the text tower read instead of titles, for a model whose histories show its vectors.

    Raises:
        ArtifactError: most of them come out otherwise.
    """
    if encoder.prompts.titles is not None:
        samples = None  # its histories hold the tokens of titles
    texts = dict(samples or {row: titles[row] for row in sample_rows(titles)})
    rows = list(texts)
    items = encoder.read_titles(list(texts.values()))
    if encoder.prompts.titles is not None:
        _refuse_most([_same_tokens(item, encoder.prompts.titles, row) for item, row in zip(items, rows, strict=True)],
                     list(texts.values()), name)  # fmt: skip
        if encoder.spec.items.tower == "encoder":
            _check_encoded(encoder, items, rows, name)
        return
    stored_KC = encoder.items.text_rows(torch.tensor(rows, device=encoder.device)).float().cpu().numpy()
    close = [
        _cosine(item.text_vector, stored_C) >= LEAST_COSINE for item, stored_C in zip(items, stored_KC, strict=True)
    ]
    _refuse_most(close, list(texts.values()), name)


@torch.inference_mode()
def _check_encoded(encoder: UserEncoder, items: Sequence[FreeItem], rows: Sequence[int], name: str) -> None:
    """The item tower's table holds what the encoder makes of these titles; raises ArtifactError."""
    found_RD = encoder.encode_items(items).float().cpu().numpy()
    stored_RD = encoder.items.rows(torch.tensor(rows, device=encoder.device)).float().cpu().numpy()
    close = [_cosine(found_D, stored_D) >= LEAST_COSINE for found_D, stored_D in zip(found_RD, stored_RD, strict=True)]
    _refuse_most(close, [item.title for item in items], name)


def check_title_tokens(items: Sequence[FreeItem], stored: TitleTokens, rows: Sequence[int], name: str) -> None:
    """The same for a model that writes: ``items`` are the titles of ``rows``, read now.

    Raises:
        ArtifactError: most of them come out otherwise.
    """
    same = [_same_tokens(item, stored, row) for item, row in zip(items, rows, strict=True)]
    _refuse_most(same, [item.title for item in items], name)


def sample_rows(titles: Sequence[str]) -> list[int]:
    """A few rows, far apart, whose titles are plain text already: others were read otherwise by older versions."""
    spread = np.linspace(0, len(titles) - 1, min(len(titles), 8 * TITLES_CHECKED)).astype(int).tolist()
    plain = [row for row in spread if plain_text(titles[row]) == titles[row]] or spread
    return sorted({plain[place] for place in np.linspace(0, len(plain) - 1, TITLES_CHECKED).astype(int)})


def _same_tokens(item: FreeItem, stored: TitleTokens, row: int) -> bool:
    return item.tokens is not None and np.array_equal(item.tokens, stored[row])


def _cosine(found_C: NDArray[np.float32] | None, stored_C: NDArray[np.float32]) -> float:
    assert found_C is not None, "a compressed history shows title vectors"
    norms = float(np.linalg.norm(found_C) * np.linalg.norm(stored_C))
    return float(found_C @ stored_C) / norms if norms else 1.0


def _refuse_most(same: Sequence[bool], titles: Sequence[str], name: str) -> None:
    if 2 * sum(same) < len(same):
        wrong = titles[list(same).index(False)]
        raise ArtifactError(
            f"artifact {name} reads {len(same) - sum(same)} of {len(same)} titles of its own catalog otherwise than "
            f"in training, the first {wrong[:80]!r}: text backbone, tokenizer or whitening are not those of training"
        )
