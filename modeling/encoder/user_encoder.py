"""The user encoder: histories in, vectors in the item space out. Training and serving run this same code.

Shape legend: B users, T positions, H backbone width, D item dimension, N items, M items read, P pooled states.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.backbone.dropout import drop
from modeling.backbone.loading import word_size
from modeling.backbone.transformer import OwnTransformer
from modeling.encoder.item_tower import ItemTower
from modeling.encoder.projector import Projector
from modeling.encoder.prompt import ID, TEXT, TOKEN, FreeItem, Prompt, PromptBuilder, recent_rows
from modeling.spec import ModelSpec


class CannotReadText(ValueError):
    """Free text was given to a model that reads ids only."""


@dataclass(frozen=True)
class Batch:
    """Prompts as tensors, padded to one length. ``mask_BT`` and ``positions_BT`` are None when padding is on the
    right: under causal attention no valid position can see what comes after it, so no mask is needed."""

    kinds_BT: Tensor
    values_BT: Tensor
    last_B: Tensor
    recent_BR: Tensor
    free_FC: Tensor | None
    mask_BT: Tensor | None
    positions_BT: Tensor | None
    tokens: int

    @property
    def shape(self) -> tuple[int, int]:
        """(B, T), padding included."""
        return self.kinds_BT.shape[0], self.kinds_BT.shape[1]


ReadTitles = Callable[[Sequence[str]], list[FreeItem]]


class CompiledForward(Protocol):
    """The inference-only forward of an encoder; see `modeling.inference.encoder_forward`."""

    def __call__(self, prompts: Sequence[Prompt]) -> Tensor:
        """User vectors [B, D]."""

    def record(self, positions: int) -> str:
        """Record launches of batches of up to so many positions on a GPU; the reason where that fails."""

    def meet_lengths(self, positions: int) -> None:
        """Prepare products for all batches of up to so many positions."""


class UserEncoder(nn.Module):
    """Backbone, item tower, input maps and projector, put together as a ``ModelSpec`` says.

    Args:
        spec: the model's description.
        backbone: called with ``inputs_embeds`` [B, T, H].
        items: the item tower (shared with the history).
        prompts: puts positions together.
        hidden_size: H.
        read_titles: turns free text into items; None for a model that reads ids only.
    """

    def __init__(
        self,
        spec: ModelSpec,
        *,
        backbone: nn.Module,
        items: ItemTower,
        prompts: PromptBuilder,
        hidden_size: int,
        read_titles: ReadTitles | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.backbone = backbone
        self.items = items
        self.prompts = prompts
        self._read_titles = read_titles
        self.hidden_size = hidden_size
        self.fast: CompiledForward | None = None  # see `modeling.inference.encoder_forward.compile_encoder`
        dim, text_dim = spec.items.dim, items.text_NC.shape[1]
        own = isinstance(backbone, OwnTransformer)
        size = 1.0 if own else word_size(backbone)
        tied = own and hidden_size == dim
        self.id_input: nn.Module = nn.Identity() if tied else _input_map(dim, hidden_size, size)
        self.text_input = None
        if spec.history.form == "compressed" and not (tied and items.text_map is not None):
            self.text_input = _input_map(text_dim, hidden_size, size)
        self.projector = Projector(spec.projector, hidden_size=hidden_size, dim=dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(15.0) if spec.items.normalize else 0.0))

    # -- putting a request together (numpy, no torch) ---------------------------------------------------------------

    @property
    def history_limit(self) -> int:
        """At most this many of the newest items are read."""
        return self.prompts.item_limit

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.items.ids.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the backbone's weights."""
        return next(self.backbone.parameters()).dtype

    @property
    def exact(self) -> bool:
        """Whether vectors are those of training: nothing is rounded to fewer bits."""
        rounds = any(getattr(part, "rounds_weights", False) for part in self.backbone.modules())
        return self.dtype == torch.float32 and not rounds

    @property
    def text_model(self) -> nn.Module | None:
        """The network that reads free titles, from the first one on; None where no network is needed for it."""
        return getattr(self._read_titles, "model", None)

    def read_titles(self, titles: Sequence[str]) -> list[FreeItem]:
        """Free text as items, to be used in a history beside catalog rows.

        Raises:
            CannotReadText: the model reads ids only.
        """
        if self._read_titles is None:
            raise CannotReadText(
                f"this model reads item ids only (history.form={self.spec.history.form!r}); "
                "leave out free titles or serve a recipe that reads text"
            )
        return self._read_titles(titles)

    def with_titles(self, history: Sequence[int | str]) -> list[int | FreeItem]:
        """A history of catalog rows and free titles, its titles read; raises as `read_titles`."""
        return read_history(history, self.read_titles)

    def prepare(self, history: Sequence[int | FreeItem]) -> Prompt:
        """The positions of one history, oldest item first (see ``PromptBuilder.build``)."""
        return self.prompts.build(history)

    def collate(self, prompts: Sequence[Prompt], *, padding_side: str = "right") -> Batch:
        """Prompts to tensors [B, T]; ``padding_side='left'`` brings a mask and explicit positions."""
        length = max(prompt.length for prompt in prompts)
        kinds = np.zeros((len(prompts), length), np.int8)
        values = np.zeros((len(prompts), length), np.int64)
        last = np.empty(len(prompts), np.int64)
        free: list[NDArray[np.float32]] = []
        for row, prompt in enumerate(prompts):
            start = length - prompt.length if padding_side == "left" else 0
            stop = start + prompt.length
            kinds[row, start:stop] = prompt.kinds_T
            shifted = prompt.values_T
            if free and prompt.free_vectors:
                shifted = shifted + (shifted > self.items.size) * (prompt.kinds_T != TOKEN) * len(free)
            values[row, start:stop] = shifted
            last[row] = start + prompt.boundaries_M[-1]
            free.extend(prompt.free_vectors)
        device = self.device
        mask = torch.from_numpy(kinds > 0).long().to(device) if padding_side == "left" else None
        return Batch(
            kinds_BT=torch.from_numpy(kinds).to(device),
            values_BT=torch.from_numpy(values).to(device),
            last_B=torch.from_numpy(last).to(device),
            recent_BR=self.recent(prompts),
            free_FC=torch.from_numpy(np.stack(free)).to(device) if free else None,
            mask_BT=mask,
            positions_BT=None if mask is None else (mask.cumsum(-1) - 1).clamp(min=0),
            tokens=sum(prompt.length for prompt in prompts),
        )

    # -- the forward ------------------------------------------------------------------------------------------------

    def hidden(self, batch: Batch) -> Tensor:
        """States of all positions, [B, T, H]."""
        embeds_BTH = self._embed(batch).to(self.dtype)
        options: dict[str, Any] = {}
        if batch.mask_BT is not None:
            options = {"attention_mask": batch.mask_BT, "position_ids": batch.positions_BT}
            if "position_ids" not in _accepted(self.backbone):
                del options["position_ids"]
        return cast(Tensor, self.backbone(inputs_embeds=embeds_BTH, use_cache=False, **options).last_hidden_state)

    @property
    def recent_items(self) -> int:
        """R, the newest items whose own vectors a user's is made of, beside the state."""
        return self.spec.projector.recent

    def recent(self, prompts: Sequence[Prompt]) -> Tensor:
        """Their rows, newest first, [B, R]; -1 where a history has fewer."""
        return torch.from_numpy(recent_rows(prompts, self.recent_items, self.items.size)).to(self.device)

    def project(self, states_PH: Tensor, recent_PR: Tensor, table_ND: Tensor | None = None) -> Tensor:
        """Pooled states to item space, [P, D].

        Args:
            states_PH: states at item boundaries.
            recent_PR: rows of the newest items each state has read, newest first; -1: no item.
            table_ND: the item tower's table where the caller has it already.
        """
        recent_PD = None
        if self.spec.projector.residual:
            table_ND = self.items.table() if table_ND is None else table_ND
            recent_PD = self.projector.summed(table_ND, recent_PR) * math.sqrt(self.spec.items.dim)
        return self.items.finish(self.projector(states_PH.float(), recent_PD).float())

    def forward(self, batch: Batch) -> Tensor:
        """User vectors [B, D], read at each prompt's last boundary."""
        rows = torch.arange(len(batch.last_B), device=batch.last_B.device)
        return self.finish(self.hidden(batch)[rows, batch.last_B], batch.recent_BR, batch.free_FC)

    def finish(self, states_BH: Tensor, recent_BR: Tensor, free_FC: Tensor | None) -> Tensor:
        """User vectors [B, D] from pooled states, the rows of the newest items of each, and free titles' vectors."""
        table_ND = None
        if free_FC is not None and self.items.text_map is not None:
            table_ND = torch.cat([self.items.table(), self.items.cold_table(free_FC)])
        else:
            recent_BR = recent_BR.clamp(max=self.items.size)
        return self.project(states_BH, recent_BR, table_ND)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """One forward over a batch, as an array [B, D]; by the inference-only forward once it is compiled."""
        found_BD = self(self.collate(prompts)) if self.fast is None else self.fast(prompts)
        vectors: NDArray[np.float32] = found_BD.float().cpu().numpy()
        return vectors

    def _embed(self, batch: Batch) -> Tensor:
        """Input vectors [B, T, H]: token embeddings, and mapped title and id vectors where the prompt has slots."""
        kinds, values = batch.kinds_BT, batch.values_BT
        out_BTH: Tensor | None = None
        if bool((kinds & TOKEN).any()):
            words = cast(Any, self.backbone).get_input_embeddings()
            out_BTH = words(torch.where(kinds == TOKEN, values, 0))
            out_BTH = out_BTH * (kinds == TOKEN)[..., None]
        slots = kinds > TOKEN
        vectors_SH = drop(self.slot_vectors(kinds[slots], values[slots], batch.free_FC), *self._slot_dropout)
        if out_BTH is None:
            out_BTH = vectors_SH.new_zeros(*kinds.shape, vectors_SH.shape[-1])
        return out_BTH.masked_scatter(slots[..., None], vectors_SH.to(out_BTH.dtype))

    @property
    def _slot_dropout(self) -> tuple[float, bool]:
        return self.spec.history.dropout, self.training

    def slot_vectors(self, kinds_S: Tensor, values_S: Tensor, free_FC: Tensor | None) -> Tensor:
        """Input vectors [S, H] of item slots."""
        rows_S = values_S.clamp(max=self.items.size)
        drop = self.spec.history.id_dropout
        if self.training and drop:
            unknown = torch.rand(rows_S.shape, device=rows_S.device) < drop
            rows_S = torch.where(unknown, self.items.size, rows_S)
        has_id = (kinds_S & ID).bool()[:, None]
        scale = math.sqrt(self.spec.items.dim)
        out_SH = self.id_input(self.items.ids(rows_S) * scale) * has_id
        if self.spec.history.form != "compressed":
            return cast(Tensor, out_SH)
        has_text = (kinds_S & TEXT).bool()[:, None]
        return cast(Tensor, out_SH + self._text_vectors(values_S, free_FC) * has_text)

    def _text_vectors(self, values_S: Tensor, free_FC: Tensor | None) -> Tensor:
        text_NC = self.items.text_NC
        if free_FC is not None:
            text_NC = torch.cat([text_NC, free_FC.to(text_NC)])
        text_SC = text_NC[values_S]
        if self.text_input is not None:
            return cast(Tensor, self.text_input(text_SC * math.sqrt(text_SC.shape[-1])))
        assert self.items.text_map is not None
        return cast(Tensor, self.id_input(self.items.text_map(text_SC) * math.sqrt(self.spec.items.dim)))


def read_history(history: Sequence[int | str], read_titles: ReadTitles) -> list[int | FreeItem]:
    """Rows as they are, titles as what ``read_titles`` makes of them."""
    titles = [item for item in history if isinstance(item, str)]
    read = iter(read_titles(titles) if titles else ())
    return [next(read) if isinstance(item, str) else item for item in history]


def _input_map(width: int, hidden_size: int, size: float) -> nn.Linear:
    """A map from vectors with elements of unit size to vectors with elements of ``size``."""
    layer = nn.Linear(width, hidden_size, bias=False)
    nn.init.normal_(layer.weight, std=size / math.sqrt(width))
    return layer


def _accepted(model: nn.Module) -> frozenset[str]:
    """Names of the arguments a backbone's forward takes (a PEFT wrapper passes everything on)."""
    inner = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(type(inner).forward).parameters)
