"""Trains a language model to write the name of a user's next item, and answers with what it writes.

A user's sequence is read once, as the names of its items (titles or semantic IDs) one after the other, each closed by
the end token, with the loss at every token (next-token prediction), or at every token that has an alternative in the
trie of all names: which is that of writing item n + 1 after items 1 … n, for all n. The first item of a window is
written after nothing, which is what an empty history is answered with.

The best epoch is the one whose real answers, written by beam search along the trie, are best on validation.

Shape legend: B windows, T tokens, P tokens that are not padding, V vocabulary, H width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from modeling.backbone.dropout import Dropout
from modeling.backbone.hidden_dropout import hook_blocks
from modeling.backbone.split import SplitBackbone
from modeling.encoder.prompt import TitleTokens
from modeling.generation.api import ListQuery
from modeling.generation.base import ItemGenerator
from modeling.methods.base import ListMethod
from training.data.splits import Targets
from training.evaluation.full_ranking import SHOWN, Evaluation, evaluation_of
from training.evaluation.metrics import question_values
from training.loop.examples import Window
from training.loop.kept_states import KeptStates
from training.loop.module import TrainedModule
from training.objectives.softmax import full_softmax
from training.objectives.trie_softmax import TrieSoftmax

IGNORED = -100
BATCH_BEAMS = {"cpu": 320, "cuda": 2048}
"""Beams that are stepped together when many histories are answered, by device."""


@dataclass(frozen=True)
class NextTokenBatch:
    """Token ids [B, T] of padded windows, and the token that follows each (``IGNORED`` where padding does); and, where
    they are kept, the states of the frozen layers."""

    ids_BT: Tensor
    targets_BT: Tensor
    at_cut_BTH: Tensor | None = field(default=None, kw_only=True)

    @property
    def count(self) -> int:
        """Tokens that the loss is summed over."""
        return int((self.targets_BT != IGNORED).sum())


class NextTokenModule(TrainedModule):
    """Next-token loss of a causal language model over sequences of titles.

    Args:
        model: with its head; a Hugging Face model for causal language modelling.
        names: tokens of every item of the catalog.
        end: closes every name, and begins every sequence.
        dropout: on the token embeddings that are read and on the states before the head, while training.
        hidden_dropout: on what every attention and feed-forward block adds, while training.

    Attributes:
        from_scratch: whether the model is a network of a recipe's own, which was not pretrained.
        fixed: whether every epoch reads the same windows.
        most: windows that are read, drawn once; None: all.
        kept: states of the frozen layers of all texts; None: they are computed in every step.
        split: the model without its head in two parts, where states are kept.
    """

    def __init__(
        self, model: nn.Module, names: TitleTokens, *, end: int, dropout: float, hidden_dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.model = model
        self.names, self.end = names, end
        self.dropout = Dropout(dropout)
        self.from_scratch, self.fixed = False, False
        self.most: int | None = None
        self.kept: KeptStates | None = None
        self.split: SplitBackbone | None = None
        self._hooks = hook_blocks(model, hidden_dropout) if hidden_dropout else []

    def close(self) -> None:
        """The end of training: the model is as it came, apart from its weights."""
        for hook in self._hooks:
            hook.remove()

    def collate(self, windows: Sequence[Window]) -> NextTokenBatch:
        """Windows as tokens, padded on the right: with causal attention no mask is needed."""
        texts = [self.text(window) for window in windows]
        shape = (len(texts), max(map(len, texts)) - 1)
        ids_BT, targets_BT = np.full(shape, self.end, np.int64), np.full(shape, IGNORED, np.int64)
        for number, (text, window) in enumerate(zip(texts, windows, strict=True)):
            given = self.given(text, window)
            ids_BT[number, : len(text) - 1] = text[:-1]
            targets_BT[number, given - 1 : len(text) - 1] = text[given:]
        at_cut_BTH = None if self.kept is None else self.kept.batch([text[:-1] for text in texts])
        return NextTokenBatch(torch.from_numpy(ids_BT), torch.from_numpy(targets_BT), at_cut_BTH=at_cut_BTH)

    def text(self, window: Window) -> NDArray[np.int64]:
        """A window as tokens, prefix and last answer included."""
        return np.asarray([*self.prefix, *self.tokens(window.rows)], np.int64)

    def given(self, text: NDArray[np.int64], window: Window) -> int:
        """How many tokens at the beginning of a window's text have no loss; at least one."""
        return len(self.prefix)

    @property
    def fixed_windows(self) -> bool:
        """Whether every epoch reads the same windows."""
        return self.fixed

    @property
    def most_windows(self) -> int | None:
        """Windows that are read."""
        return self.most

    @property
    def prefix(self) -> tuple[int, ...]:
        """What begins every sequence and has no loss; at least one token."""
        return (self.end,)

    def tokens(self, rows: NDArray[np.int64]) -> list[int]:
        """A window as tokens, after the prefix."""
        return [token for row in rows.tolist() for token in (*self.names[row].tolist(), self.end)]

    @property
    def item_lengths_N(self) -> NDArray[np.int64]:
        """Tokens of every name, its end included."""
        return np.diff(self.names.offsets) + 1

    def pretrained(self, name: str) -> bool:
        """All of it is the language model, where that is not trained from scratch."""
        return not self.from_scratch

    def inputs(self, ids_BT: Tensor, progress: float) -> Tensor:
        """What the first layer reads, [B, T, H]."""
        return cast(Tensor, cast(Any, self.model).get_input_embeddings()(ids_BT))

    def forward(self, batch: NextTokenBatch, progress: float = 0.0) -> Tensor:
        """Summed negative log probability of the tokens."""
        return self.token_loss(*self.states(batch, progress))

    def token_loss(self, states_PH: Tensor, targets_P: Tensor) -> Tensor:
        """Summed negative log probability of ``targets_P`` after ``states_PH``."""
        head = cast(Any, self.model).get_output_embeddings()
        weight_VH = head.weight.to(states_PH.dtype)
        if getattr(head, "bias", None) is not None:  # one more dimension, which is always 1
            states_PH = torch.cat([states_PH, torch.ones_like(states_PH[:, :1])], 1)
            weight_VH = torch.cat([weight_VH, head.bias[:, None].to(weight_VH)], 1)
        return full_softmax(states_PH.float(), weight_VH.float(), targets_P)

    def states(self, batch: NextTokenBatch, progress: float = 0.0) -> tuple[Tensor, Tensor]:
        """States [P, H] at the tokens that have a target, before the head, and the targets [P]."""
        return self.with_targets(self.read(batch, progress).last_hidden_state, batch)

    def read(self, batch: NextTokenBatch, progress: float = 0.0, **options: Any) -> Any:
        """What the model without its head makes of a batch; ``options`` of its forward."""
        model = cast(Any, self.model)
        device = model.get_output_embeddings().weight.device
        if self.split is not None and batch.at_cut_BTH is not None:
            return self.split.upper(batch.at_cut_BTH.to(device), **options)
        embedded_BTH = self.dropout(self.inputs(batch.ids_BT.to(device), progress))
        body = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        return body(inputs_embeds=embedded_BTH, use_cache=False, **options)

    def with_targets(self, states_BTH: Tensor, batch: NextTokenBatch) -> tuple[Tensor, Tensor]:
        """Of the states after the last layer, those [P, H] that have a target, and the targets [P]."""
        targets_BT = batch.targets_BT.to(states_BTH.device)
        real_BT = targets_BT != IGNORED
        return self.dropout(states_BTH[real_BT]), targets_BT[real_BT]


@dataclass(frozen=True)
class TrieSoftmaxBatch(NextTokenBatch):
    """Also the state of the trie before each target [B, T], and the items that are written."""

    states_BT: Tensor
    items: int

    @property
    def count(self) -> int:
        """Items that the loss is summed over."""
        return self.items


class TrieSoftmaxModule(NextTokenModule):
    """The same along a trie: probabilities are divided among the tokens that may follow, and a token without an
    alternative has no loss.

    Args:
        model, names, end, dropout, hidden_dropout: see `NextTokenModule`.
        children: the loss at the states of the trie.
    """

    def __init__(
        self,
        model: nn.Module,
        names: TitleTokens,
        *,
        end: int,
        dropout: float,
        hidden_dropout: float = 0.0,
        children: TrieSoftmax,
    ) -> None:
        super().__init__(model, names, end=end, dropout=dropout, hidden_dropout=hidden_dropout)
        self.children_softmax = children

    def collate(self, windows: Sequence[Window]) -> TrieSoftmaxBatch:
        """Windows as tokens, the targets without an alternative left out."""
        batch = super().collate(windows)
        given = len(self.prefix) - 1
        states_BT = np.zeros(batch.targets_BT.shape, np.int64)
        for number, window in enumerate(windows):
            states = np.concatenate([self.children_softmax.states(row) for row in window.rows.tolist()])
            states_BT[number, given : given + len(states)] = states
        forced_BT = torch.from_numpy(~self.children_softmax.decides(states_BT))
        targets_BT = batch.targets_BT.masked_fill(forced_BT, IGNORED)
        items = sum(len(window.rows) for window in windows)
        return TrieSoftmaxBatch(
            batch.ids_BT, targets_BT, torch.from_numpy(states_BT), items, at_cut_BTH=batch.at_cut_BTH
        )

    def forward(self, batch: NextTokenBatch, progress: float = 0.0) -> Tensor:
        """Summed negative log probability of the items."""
        assert isinstance(batch, TrieSoftmaxBatch)
        states_PH, targets_P = self.states(batch, progress)
        head = cast(Any, self.model).get_output_embeddings()
        alphabet_A = self.children_softmax.alphabet_A
        bias_A = None if getattr(head, "bias", None) is None else head.bias[alphabet_A].float()
        logits_PA = F.linear(states_PH.float(), head.weight[alphabet_A].float(), bias_A)
        at_P = batch.states_BT[batch.targets_BT != IGNORED].to(targets_P.device)
        return cast(Tensor, self.children_softmax(logits_PA, targets_P, at_P))


def written_metrics(model: nn.Module, writer: ItemGenerator, targets: Targets) -> dict[str, float]:
    """NDCG@10 and Recall@10 of what is written for ``targets``."""
    training = model.training
    model.eval()
    rows_TK = write_all(writer, list(targets.histories()), user_ids_of(targets))
    model.train(training)
    values = question_values(ranks_in(rows_TK, targets.rows_T, len(writer.names.tokens)), cuts=(10,))
    return {name: float(values[name].mean()) for name in ("ndcg@10", "recall@10")}


def write_all(
    writer: ListMethod,
    histories: Sequence[NDArray[Any]],
    user_ids: Sequence[str | None] | None = None,
    *,
    progress: Callable[[int], object] = lambda done: None,
) -> NDArray[np.int64]:
    """The best ``SHOWN`` rows of every history, seen items left out [T, K]; -1 where fewer are eligible."""
    users = [None] * len(histories) if user_ids is None else user_ids
    prompts = [
        writer.prepare(np.asarray(history).tolist(), user) for history, user in zip(histories, users, strict=True)
    ]
    rows_TK = np.full((len(histories), SHOWN), -1, np.int64)
    devices = (weight.device.type for network in writer.networks.values() for weight in network.parameters())
    beams = BATCH_BEAMS.get(next(devices, "cpu"), BATCH_BEAMS["cpu"])
    size = max(1, beams // cast(int, writer.default.beams))
    order = sorted(range(len(prompts)), key=lambda number: prompts[number].length)
    for start in range(0, len(order), size):
        chosen = order[start : start + size]
        wanted = [ListQuery(SHOWN, np.asarray(histories[number], np.int64)) for number in chosen]
        for number, written in zip(chosen, writer.write([prompts[n] for n in chosen], wanted), strict=True):
            rows_TK[number, : len(written.rows_K)] = written.rows_K
        progress(len(chosen))
    return rows_TK


def user_ids_of(targets: Targets) -> list[str | None]:
    """Who is asked about, by question."""
    known = targets.dataset.user_ids
    return [known[user] for user in targets.users_T.tolist()]


def ranks_in(rows_TK: NDArray[np.int64], targets_T: NDArray[np.int64], catalog_size: int) -> NDArray[np.int64]:
    """Rank of each target in the list that was returned, the catalog's size where it is not in it: a writer scores only
    what it writes, so figures beyond the list's length do not exist for it."""
    hits_TK = rows_TK == targets_T[:, None]
    return np.where(hits_TK.any(1), hits_TK.argmax(1) + 1, catalog_size)


def evaluate_generator(
    writer: ListMethod,
    targets: Targets,
    popularity_N: NDArray[np.int64],
    *,
    seed: int = 0,
    progress: Callable[[int], object] = lambda done: None,
) -> Evaluation:
    """Answer every question of ``targets`` as the service would, with the artifact's own beams."""
    histories = [history.astype(np.int64) for history in targets.histories()]
    rows_TK = write_all(writer, histories, user_ids_of(targets), progress=progress)
    ranks_T = ranks_in(rows_TK, targets.rows_T, len(popularity_N))
    return evaluation_of(ranks_T, rows_TK, targets, histories, popularity_N, seed=seed)
