"""The backbone that stages hand on: where it is, its tokenizer, and the adapter that each stage trains and merges."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from modeling.artifact.tensor_files import save_pretrained
from modeling.artifact.verified import Folder
from modeling.backbone.adapters import adapter_of
from modeling.backbone.loading import TextTokenizer, load_tokenizer
from modeling.spec import AdapterSpec, BackboneSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FOLDER = "backbone"


@dataclass
class Adapted:
    """A backbone between stages.

    Attributes:
        backbone: its description; no dropout but that of a stage.
        folder: where it is; None: where ``backbone`` says.
        download: whether a hub may be asked for it.
    """

    backbone: BackboneSpec
    folder: Folder | None
    download: bool

    def pieces(self, new: Sequence[str] = ()) -> TextTokenizer:
        """Its tokenizer, with ``new`` control tokens."""
        return TextTokenizer(self._tokenizer(new))

    def store(self, body: nn.Module, work: Path, new: Sequence[str] = ()) -> None:
        """Write a stage's result to ``work``, its tokenizer with ``new`` control tokens, and go on with it."""
        tokenizer = self._tokenizer(new)
        save_pretrained(body, work / FOLDER)
        tokenizer.save_pretrained(str(work / FOLDER))
        self.take(work)

    def take(self, work: Path) -> None:
        """Go on with what a stage left in ``work``."""
        self.folder = work / FOLDER

    def _tokenizer(self, new: Sequence[str] = ()) -> PreTrainedTokenizerBase:
        found = load_tokenizer(
            self.backbone.source, folder=self.folder, revision=self.backbone.revision, download=self.download
        )
        if new:
            found.add_tokens(list(new), special_tokens=True)
        return found


class StageLora:
    """The LoRA of a stage: rank, scale and dropout as published, on all linear maps."""

    spec = AdapterSpec(kind="lora", rank=16, alpha=32, dropout=0.05)

    def attach(self, body: nn.Module) -> nn.Module:
        """A fresh one on a frozen body."""
        return adapter_of("lora").attach(body, self.spec)

    def merge(self, tuned: nn.Module) -> nn.Module:
        """The body with the adapter in its weights."""
        return adapter_of("lora").merge(tuned)


LORA = StageLora()
