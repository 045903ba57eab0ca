"""The user encoder: histories in, vectors in the item space out. Training and serving run this same code.

Shape legend: B users, T positions, H backbone width, D item dimension, N items, M items read, P pooled states.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.backbone.adapters.condition import conditioned_on
from modeling.backbone.dropout import drop
from modeling.backbone.loading import word_size
from modeling.encoder.batch import Batch
from modeling.encoder.capabilities import capabilities_of
from modeling.encoder.item_tower import ItemTower
from modeling.encoder.pooling import Spans, pooling_of
from modeling.encoder.projector import Projector, input_map
from modeling.encoder.prompt import ID, TEXT, TOKEN, FreeItem, Prompt, PromptBuilder, recent_rows
from modeling.spec import ModelSpec

TITLES = 64
"""Free titles that are encoded in one pass as items are."""


class CannotReadText(ValueError):
    """Free text was given to a model that reads ids only."""


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
        item_prompts: puts the prompts of single items together, where items are encoded as histories are.
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
        item_prompts: PromptBuilder | None = None,
    ) -> None:
        super().__init__()
        self.spec = spec
        self.capabilities = capabilities_of(spec)
        self.backbone = backbone
        self.items = items
        self.prompts = prompts
        self.pooling = pooling_of(spec.pooling)
        self._item_prompts = item_prompts
        self._read_titles = read_titles
        self.hidden_size = hidden_size
        self.history_state: nn.Module | None = None  # see `modeling.encoder.history_state`
        self.fast: CompiledForward | None = None  # see `modeling.inference.encoder_forward.compile_encoder`
        dim, text_dim = items.id_dim, items.text_NC.shape[1]
        own = spec.backbone.own
        size = 1.0 if own else word_size(backbone)
        tied = not spec.has_network or (own and hidden_size == dim) or spec.items.words
        shown = spec.history.shows_ids
        self.id_input: nn.Module = nn.Identity() if tied or not shown else input_map(dim, hidden_size, size)
        self.text_input = None
        if spec.history.form == "compressed" and not (tied and items.text_map is not None):
            self.text_input = input_map(text_dim, hidden_size, size)
        self.projector = Projector(spec.projector, hidden_size=hidden_size, dim=items.dim)
        self.log_scale = nn.Parameter(torch.tensor(math.log(15.0) if spec.items.normalize else 0.0))

    # -- putting a request together (numpy, no torch) ---------------------------------------------------------------

    @property
    def history_limit(self) -> int:
        """At most this many of the newest items are read."""
        return self.prompts.item_limit

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.log_scale.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the backbone's weights, or of the item table without a network."""
        return next(self.backbone.parameters(), self.items.ids.weight).dtype

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

    def prepare(self, history: Sequence[int | FreeItem], condition_C: NDArray[np.float32] | None = None) -> Prompt:
        """The positions of one history, oldest item first (see ``PromptBuilder.build``).

        Args:
            history: catalog rows and free titles.
            condition_C: what a gated adapter reads beside it.
        """
        prompt = self.prompts.build(history)
        return prompt if condition_C is None else replace(prompt, condition=condition_C)

    def collate(self, prompts: Sequence[Prompt], *, padding_side: str = "right") -> Batch:
        """Prompts to tensors [B, T]; ``padding_side='left'`` brings a mask and explicit positions.

        Raises:
            ValueError: some prompts have a condition and others have none.
        """
        length = max(prompt.length for prompt in prompts)
        kinds = np.zeros((len(prompts), length), np.int8)
        values = np.zeros((len(prompts), length), np.int64)
        spans = np.empty((5, len(prompts)), np.int64)
        free: list[NDArray[np.float32]] = []
        for row, prompt in enumerate(prompts):
            start = length - prompt.length if padding_side == "left" else 0
            stop = start + prompt.length
            kinds[row, start:stop] = prompt.kinds_T
            shifted = prompt.values_T
            if free and prompt.free_vectors:
                shifted = shifted + (shifted > self.items.size) * (prompt.kinds_T != TOKEN) * len(free)
            values[row, start:stop] = shifted
            spans[:, row] = row, start, start + prompt.first, start + prompt.boundaries_M[-1], stop - 1
            free.extend(prompt.free_vectors)
        device = self.device
        left = padding_side == "left"
        masked = left or not self.capabilities.causal
        mask = torch.from_numpy(kinds > 0).long().to(device) if masked else None
        return Batch(
            kinds_BT=torch.from_numpy(kinds).to(device),
            values_BT=torch.from_numpy(values).to(device),
            spans=Spans(*torch.from_numpy(spans).to(device)),
            recent_BR=self.recent(prompts),
            free_FC=torch.from_numpy(np.stack(free)).to(device) if free else None,
            mask_BT=mask,
            positions_BT=(mask.cumsum(-1) - 1).clamp(min=0) if left and mask is not None else None,
            tokens=sum(prompt.length for prompt in prompts),
            condition_BC=self._conditions(prompts),
        )

    def _conditions(self, prompts: Sequence[Prompt]) -> Tensor | None:
        found = [prompt.condition for prompt in prompts if prompt.condition is not None]
        if not found:
            return None if self.history_state is None else cast(Tensor, self.history_state(prompts))
        if len(found) < len(prompts):
            raise ValueError(f"{len(found)} of {len(prompts)} prompts of a batch have a condition: all or none may")
        return torch.from_numpy(np.stack(found)).to(self.device)

    # -- the forward ------------------------------------------------------------------------------------------------

    def hidden(self, batch: Batch) -> Tensor:
        """States of all positions, [B, T, H]; H is 0 where no network reads them."""
        if not self.spec.has_network:
            return torch.zeros(*batch.shape, 0, dtype=self.dtype, device=self.device)
        embeds_BTH = self._embed(batch).to(self.dtype)
        options: dict[str, Any] = {}
        if batch.mask_BT is not None:
            options["attention_mask"] = batch.mask_BT
        if batch.positions_BT is not None and "position_ids" in _accepted(self.backbone):
            options["position_ids"] = batch.positions_BT
        with conditioned_on(batch.condition_BC):
            found = self.backbone(inputs_embeds=embeds_BTH, use_cache=False, **options)
        return cast(Tensor, found.last_hidden_state)

    def boundary_states(self, batch: Batch, rows_P: Tensor, last_P: Tensor) -> Tensor:
        """Pooled states [P, H] of histories that are beginnings of those of a batch, from one pass.

        Args:
            batch: padded on the right.
            rows_P: whose beginning each is.
            last_P: the last position of its last item.

        Raises:
            ValueError: a state is that of a whole history (``capabilities.every_boundary``).
        """
        if not self.capabilities.every_boundary:
            raise ValueError("a state of this encoder is that of a whole history: beginnings need passes of their own")
        spans = batch.spans.at(rows_P.to(self.device), last_P.to(self.device))
        return cast(Tensor, self.pooling(self.hidden(batch), spans))

    @property
    def recent_items(self) -> int:
        """R, the newest items whose own vectors a user's is made of, beside the state."""
        return self.spec.projector.recent

    def recent(self, prompts: Sequence[Prompt]) -> Tensor:
        """Their rows, newest first, [B, R]; -1 where a history has fewer, and where prompts hold no rows."""
        if self.spec.history.form == "text":
            return torch.full((len(prompts), self.recent_items), -1, device=self.device)
        return torch.from_numpy(recent_rows(prompts, self.recent_items, self.items.size)).to(self.device)

    def project(
        self,
        states_PH: Tensor | None,
        recent_PR: Tensor,
        table_ND: Tensor | None = None,
        free_FC: Tensor | None = None,
    ) -> Tensor:
        """Pooled states to item space, [P, D].

        Args:
            states_PH: states at item boundaries; None: the newest items alone make the vectors.
            recent_PR: rows of the newest items each state has read, newest first; -1: no item.
            table_ND: the item tower's table where the caller has it already.
            free_FC: vectors of free titles, which stand behind the rows of the catalog and of UNKNOWN.
        """
        recent_PD = None
        if self.spec.projector.residual:
            rows_PR = recent_PR.clamp(min=0)
            recent_PRD = self.items.rows(rows_PR, free_FC) if table_ND is None else table_ND[rows_PR]
            recent_PD = self.projector.summed(recent_PRD, recent_PR) * math.sqrt(self.items.dim)
        return self.items.as_query(
            self.projector(None if states_PH is None else states_PH.float(), recent_PD).float(), self.log_scale
        )

    def forward(self, batch: Batch) -> Tensor:
        """User vectors [B, D]."""
        return self.finish(self.pooling(self.hidden(batch), batch.spans), batch.recent_BR, batch.free_FC)

    def finish(self, states_BH: Tensor, recent_BR: Tensor, free_FC: Tensor | None) -> Tensor:
        """User vectors [B, D] from pooled states, the rows of the newest items of each, and free titles' vectors."""
        if self.items.text_map is None:
            free_FC = None
        if free_FC is None:
            recent_BR = recent_BR.clamp(max=self.items.size)
        return self.project(states_BH, recent_BR, free_FC=free_FC)

    @torch.inference_mode()
    def encode(self, prompts: Sequence[Prompt]) -> NDArray[np.float32]:
        """One forward over a batch, as an array [B, D]; by the inference-only forward once it is compiled."""
        found_BD = self(self.collate(prompts)) if self.fast is None else self.fast(prompts)
        vectors: NDArray[np.float32] = found_BD.float().cpu().numpy()
        return vectors

    # -- items that are encoded as histories are --------------------------------------------------------------------

    def encode_items(self, items: Sequence[int | FreeItem]) -> Tensor:
        """Vectors [n, D] of items, each encoded as a history of its title alone, without the instruction."""
        assert self._item_prompts is not None, "only items.tower='encoder' encodes items"
        return cast(Tensor, self(self.collate([self._item_prompts.build([item]) for item in items])))

    @torch.no_grad()
    def refresh_items(self, *, batch: int = 256) -> None:
        """Encode the catalog's titles with the weights as they are, into the item tower's table."""
        prompts, training = self._item_prompts, self.training
        assert prompts is not None, "only items.tower='encoder' encodes items"
        lengths_N = prompts.item_lengths
        assert lengths_N is not None
        self.eval()
        order = np.argsort(lengths_N, kind="stable")
        for start in range(0, len(order), batch):
            rows = order[start : start + batch].tolist()
            self.items.set_encoded(rows, self.encode_items(rows))
        self.items.set_encoded([self.items.size], self.encode_items([self.items.size]))
        self.train(training)

    def title_vectors(self, titles: Sequence[str]) -> NDArray[np.float32]:
        """Item vectors [F, D] of titles that are not in the catalog; raises as `free_vectors`."""
        return self.free_vectors(self.read_titles(titles))

    @torch.inference_mode()
    def free_vectors(self, items: Sequence[FreeItem]) -> NDArray[np.float32]:
        """Item vectors [F, D] of free titles that were read.

        Raises:
            CannotReadText: the item tower has no vector for an item it was not trained on, or reads other titles than
                a history does.
        """
        if self._item_prompts is not None:
            found_FD = torch.cat([self.encode_items(items[at : at + TITLES]) for at in range(0, len(items), TITLES)])
        else:
            if self.items.text_map is None:
                raise CannotReadText("the item tower has no vector for an item it was not trained on")
            vectors = [item.text_vector for item in items if item.text_vector is not None]
            if len(vectors) < len(items):
                form = self.spec.history.form
                raise CannotReadText(f"history.form={form!r} reads free titles as tokens, not as vectors")
            found_FD = self.items.cold_vectors(torch.from_numpy(np.stack(vectors)).to(self.device))
        vectors_FD: NDArray[np.float32] = found_FD.float().cpu().numpy()
        return vectors_FD

    def _embed(self, batch: Batch) -> Tensor:
        """Input vectors [B, T, H]: token embeddings, and mapped title and id vectors where the prompt has slots."""
        kinds, values = batch.kinds_BT, batch.values_BT
        out_BTH: Tensor | None = None
        if bool((kinds & TOKEN).any()):
            words = cast(Any, self.backbone).get_input_embeddings()
            out_BTH = words(torch.where(kinds == TOKEN, values, 0))
            out_BTH = out_BTH * (kinds == TOKEN)[..., None]
        if out_BTH is not None and self.spec.history.form == "text":
            return drop(out_BTH, *self._slot_dropout)
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
        if not self.spec.history.shows_ids:
            return self._text_vectors(values_S, free_FC)
        rows_S = values_S.clamp(max=self.items.size)
        drop = self.spec.history.id_dropout
        if self.training and drop:
            unknown = torch.rand(rows_S.shape, device=rows_S.device) < drop
            rows_S = torch.where(unknown, self.items.size, rows_S)
        has_id = (kinds_S & ID).bool()[:, None]
        scale = 1.0 if self.spec.items.words else math.sqrt(self.items.id_dim)
        out_SH = self.id_input(self.items.ids(rows_S) * scale) * has_id
        if self.spec.history.form != "compressed":
            return cast(Tensor, out_SH)
        has_text = (kinds_S & TEXT).bool()[:, None]
        return cast(Tensor, out_SH + self._text_vectors(values_S, free_FC) * has_text)

    def _text_vectors(self, values_S: Tensor, free_FC: Tensor | None) -> Tensor:
        text_SC = self.items.text_rows(values_S, free_FC)
        if self.text_input is not None:
            return cast(Tensor, self.text_input(text_SC * math.sqrt(text_SC.shape[-1])))
        assert self.items.text_map is not None
        return cast(Tensor, self.id_input(self.items.text_map(text_SC) * math.sqrt(self.spec.items.dim)))


def read_history(history: Sequence[int | str], read_titles: ReadTitles) -> list[int | FreeItem]:
    """Rows as they are, titles as what ``read_titles`` makes of them."""
    read = iter(read_titles(titles) if (titles := [item for item in history if isinstance(item, str)]) else ())
    return [next(read) if isinstance(item, str) else item for item in history]


def _accepted(model: nn.Module) -> frozenset[str]:
    """Names of the arguments a backbone's forward takes (a PEFT wrapper passes everything on)."""
    inner = cast(Any, model).get_base_model() if hasattr(model, "get_base_model") else model
    return frozenset(inspect.signature(type(inner).forward).parameters)
