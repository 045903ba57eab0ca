"""What a grounded writer keeps in its artifact beside the model: base model, title space, collaborative model."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.artifact.manifest import ArtifactError, GenerativeManifest, GroundingRecord
from modeling.artifact.tensor_files import save_arrays, save_pretrained
from modeling.artifact.verified import Files, Folder
from modeling.backbone.loading import TextTokenizer, load_backbone
from modeling.generation.api import GenerationSettings
from modeling.generation.base import ItemIdentifiers
from modeling.inference.int8_linear import Precision, dtype_of, quantise
from modeling.inference.prepacked_linear import prepack
from modeling.methods.bigrec import BigRecGenerator, Exponents
from modeling.methods.bigrec_prompt import InstructionPrompt
from modeling.methods.bigrec_title_space import TitleSpace
from modeling.methods.dense import load_artifact
from modeling.spec import BackboneSpec

BASE, SPACE, COLLABORATIVE = "grounding", "title_space.safetensors", "parts/collaborative"


def write_grounding(
    folder: Path, writer: BigRecGenerator, instruction: str, collaborative: Path | None
) -> GroundingRecord:
    """Write the parts and say what they are."""
    save_pretrained(writer.space.body, folder / BASE)
    vectors_NH = writer.space.vectors_NH.cpu().numpy()
    save_arrays({"vectors": vectors_NH, "popularity": writer.popularity_N.astype(np.int64)}, folder / SPACE)
    if collaborative is not None:
        shutil.copytree(collaborative, folder / COLLABORATIVE)
    return GroundingRecord(
        instruction=instruction,
        popularity_exponent=writer.exponents.popularity,
        collaborative_exponent=writer.exponents.collaborative,
        collaborative=collaborative is not None,
    )


def read_grounded(
    files: Files,
    manifest: GenerativeManifest,
    model: nn.Module,
    names: ItemIdentifiers,
    *,
    history_limit: int,
    default: GenerationSettings,
    precision: Precision = "fp32",
) -> BigRecGenerator:
    """The writer of an artifact whose manifest has a grounding; ``precision`` is that of the base model.

    Raises:
        ArtifactError: a part is missing, or does not fit the catalog.
    """
    record, device = manifest.grounding, next(model.parameters()).device
    assert record is not None
    tokenizer = cast(Any, names.spelling).tokenizer
    body, _ = load_backbone(BackboneSpec(source=BASE), folder=files.below(BASE), dtype=dtype_of(precision))
    arrays = files.arrays(SPACE)
    vectors_NH, popularity_N = arrays["vectors"], arrays["popularity"]
    expected = (manifest.catalog_size, int(cast(Any, body).config.hidden_size))
    if vectors_NH.shape != expected or popularity_N.shape != expected[:1]:
        raise ArtifactError(
            f"{SPACE} of {files.name} holds vectors {vectors_NH.shape} and popularity {popularity_N.shape}; the "
            f"catalog and {BASE}/ expect {expected}"
        )
    if manifest.end is None:
        raise ArtifactError(f"the manifest of {files.name} has a grounding and no end token, which closes a title")
    if precision == "int8":
        quantise(body)
    body.to(device)
    if precision == "bf16":
        prepack(body)
    collaborative = CollaborativeModel(files.below(COLLABORATIVE), expected[0]) if record.collaborative else None
    return BigRecGenerator(
        model,
        names,
        prompt=InstructionPrompt.of(tokenizer, record.instruction, manifest.end),
        space=TitleSpace(body, vectors_NH, TextTokenizer(tokenizer).wrap[0]),
        popularity_N=popularity_N,
        collaborative=collaborative,
        exponents=Exponents(record.popularity_exponent, record.collaborative_exponent),
        history_limit=history_limit,
        default=default,
    )


class CollaborativeModel(nn.Module):
    """Scores of all items under a dense artifact of the same catalog, its rows in the same order.

    Raises:
        ArtifactError: it cannot be loaded, or has another number of items.
    """

    vectors_ND: Tensor

    def __init__(self, folder: Folder, items: int) -> None:
        super().__init__()
        self.encoder = load_artifact(folder).encoder
        with torch.inference_mode():
            vectors_ND = self.encoder.items.vectors().float().clone()
        if len(vectors_ND) != items:
            raise ArtifactError(f"{folder.name} scores {len(vectors_ND)} items, and the catalog has {items}")
        self.register_buffer("vectors_ND", vectors_ND, persistent=False)

    @torch.inference_mode()
    def forward(self, history: Sequence[int]) -> NDArray[np.float32]:
        """Scores [N] for a history of catalog rows, oldest first."""
        prompt = self.encoder.prepare(list(history)[-self.encoder.history_limit :])
        found: NDArray[np.float32] = (self.vectors_ND @ self.encoder(self.encoder.collate([prompt]))[0].float()).numpy()
        return found
