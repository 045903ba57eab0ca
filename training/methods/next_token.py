"""Next-token training of a language model on sequences of items, and evaluation of the lists it generates.

A user's sequence is the concatenation of its items' tokens (titles or semantic IDs), each item followed by the end
token. The loss is on every token (next-token prediction), or on every token with an alternative in the trie of all
items. One pass over a sequence so trains the prediction of item n + 1 from items 1 … n for all n. The first item of a
window is predicted from an empty history.

The best epoch is the one whose generated lists (beam search along the trie) are best on validation.

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
"""Beams in one batch when many histories are evaluated, by device."""


@dataclass(frozen=True)
class NextTokenBatch:
    """A batch of padded windows.

    Attributes:
        ids_BT: token ids.
        targets_BT: the token after each; ``IGNORED`` where there is no loss.
        at_cut_BTH: precomputed states of the frozen layers; None: they are computed from ``ids_BT``.
    """

    ids_BT: Tensor
    targets_BT: Tensor
    at_cut_BTH: Tensor | None = field(default=None, kw_only=True)

    @property
    def count(self) -> int:
        """Number of tokens in the summed loss."""
        return int((self.targets_BT != IGNORED).sum())


class NextTokenModule(TrainedModule):
    """Next-token loss of a causal language model over sequences of titles.

    Args:
        model: with its head; a Hugging Face model for causal language modelling.
        names: tokens of every item of the catalog.
        end: token that ends every item and begins every sequence.
        dropout: on the input embeddings and on the states before the head, in training.
        hidden_dropout: on the output of every attention and feed-forward block, in training.

    Attributes:
        from_scratch: whether the model is not pretrained.
        fixed: whether every epoch reads the same windows.
        most: number of windows to train on, drawn once; None: all.
        kept: precomputed states of the frozen layers of all texts; None: they are computed in every step.
        split: the model without its head, split after the frozen layers, if ``kept`` is set.
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
        """Remove the hooks of this module from the model, after training."""
        for hook in self._hooks:
            hook.remove()

    def collate(self, windows: Sequence[Window]) -> NextTokenBatch:
        """Windows as tokens, padded on the right; causal attention needs no mask then."""
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
        """Tokens of a window, including prefix and last item."""
        return np.asarray([*self.prefix, *self.tokens(window.rows)], np.int64)

    def given(self, text: NDArray[np.int64], window: Window) -> int:
        """Number of tokens without a loss at the beginning of a window's text; at least one."""
        return len(self.prefix)

    @property
    def fixed_windows(self) -> bool:
        """See `TrainedModule.fixed_windows`."""
        return self.fixed

    @property
    def most_windows(self) -> int | None:
        """See `TrainedModule.most_windows`."""
        return self.most

    @property
    def prefix(self) -> tuple[int, ...]:
        """Tokens at the beginning of every sequence, without a loss; at least one."""
        return (self.end,)

    def tokens(self, rows: NDArray[np.int64]) -> list[int]:
        """Tokens of a window after the prefix."""
        return [token for row in rows.tolist() for token in (*self.names[row].tolist(), self.end)]

    @property
    def item_lengths_N(self) -> NDArray[np.int64]:
        """Number of tokens of each item [N], including the end token."""
        return np.diff(self.names.offsets) + 1

    def pretrained(self, name: str) -> bool:
        """See `TrainedModule.pretrained`: all weights, unless the model is trained from scratch."""
        return not self.from_scratch

    def inputs(self, ids_BT: Tensor, progress: float) -> Tensor:
        """Input embeddings [B, T, H] of the first layer."""
        return cast(Tensor, cast(Any, self.model).get_input_embeddings()(ids_BT))

    def forward(self, batch: NextTokenBatch, progress: float = 0.0) -> Tensor:
        """Summed negative log probability of the target tokens."""
        return self.token_loss(*self.states(batch, progress))

    def token_loss(self, states_PH: Tensor, targets_P: Tensor) -> Tensor:
        """Summed negative log probability of the tokens ``targets_P`` given the states ``states_PH``."""
        head = cast(Any, self.model).get_output_embeddings()
        weight_VH = head.weight.to(states_PH.dtype)
        if getattr(head, "bias", None) is not None:  # one more dimension, which is always 1
            states_PH = torch.cat([states_PH, torch.ones_like(states_PH[:, :1])], 1)
            weight_VH = torch.cat([weight_VH, head.bias[:, None].to(weight_VH)], 1)
        return full_softmax(states_PH.float(), weight_VH.float(), targets_P)

    def states(self, batch: NextTokenBatch, progress: float = 0.0) -> tuple[Tensor, Tensor]:
        """States before the head [P, H] at the tokens with a target, and the targets [P]."""
        return self.with_targets(self.read(batch, progress).last_hidden_state, batch)

    def read(self, batch: NextTokenBatch, progress: float = 0.0, **options: Any) -> Any:
        """Output of the model without its head for a batch; ``options`` are passed to its forward."""
        model = cast(Any, self.model)
        device = model.get_output_embeddings().weight.device
        if self.split is not None and batch.at_cut_BTH is not None:
            return self.split.upper(batch.at_cut_BTH.to(device), **options)
        embedded_BTH = self.dropout(self.inputs(batch.ids_BT.to(device), progress))
        body = model.get_decoder() if hasattr(model, "get_decoder") else model.base_model
        return body(inputs_embeds=embedded_BTH, use_cache=False, **options)

    def with_targets(self, states_BTH: Tensor, batch: NextTokenBatch) -> tuple[Tensor, Tensor]:
        """The states after the last layer that have a target [P, H], and the targets [P]."""
        targets_BT = batch.targets_BT.to(states_BTH.device)
        real_BT = targets_BT != IGNORED
        return self.dropout(states_BTH[real_BT]), targets_BT[real_BT]


@dataclass(frozen=True)
class TrieSoftmaxBatch(NextTokenBatch):
    """Adds the trie state before each target, ``states_BT``, and the number of target items, ``items``."""

    states_BT: Tensor
    items: int

    @property
    def count(self) -> int:
        """Number of items in the summed loss."""
        return self.items


class TrieSoftmaxModule(NextTokenModule):
    """Next-token loss along a trie: the softmax is over the tokens that the trie allows, and a token without an
    alternative has no loss.

    Args:
        model, names, end, dropout, hidden_dropout: see `NextTokenModule`.
        children: computes the loss from logits and trie states.
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
        """Windows as tokens; targets without an alternative are ignored."""
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
        """Summed negative log probability of the target items."""
        assert isinstance(batch, TrieSoftmaxBatch)
        states_PH, targets_P = self.states(batch, progress)
        head = cast(Any, self.model).get_output_embeddings()
        alphabet_A = self.children_softmax.alphabet_A
        bias_A = None if getattr(head, "bias", None) is None else head.bias[alphabet_A].float()
        logits_PA = F.linear(states_PH.float(), head.weight[alphabet_A].float(), bias_A)
        at_P = batch.states_BT[batch.targets_BT != IGNORED].to(targets_P.device)
        return cast(Tensor, self.children_softmax(logits_PA, targets_P, at_P))


def written_metrics(model: nn.Module, writer: ItemGenerator, targets: Targets) -> dict[str, float]:
    """NDCG@10 and Recall@10 of the lists generated for ``targets``."""
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
    """The best ``SHOWN`` rows for each history, without seen items, [T, K]; -1 if fewer are eligible.

    Args:
        writer: the model.
        histories: catalog rows, oldest first, T of them.
        user_ids: of the histories, for models that read users; None: unknown.
        progress: called with the number of histories of each finished batch.
    """
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
    """User id of each target, [T]; None for a user without an id."""
    known = targets.dataset.user_ids
    return [known[user] for user in targets.users_T.tolist()]


def ranks_in(rows_TK: NDArray[np.int64], targets_T: NDArray[np.int64], catalog_size: int) -> NDArray[np.int64]:
    """Rank of each target in its list [T], from 1; the catalog's size if it is not in the list. A generative model
    scores only the items it generates, so metrics beyond the list's length are undefined for it."""
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
    """Generate a list for each target as the service does, with the artifact's default beams, and evaluate it.

    Args:
        writer: the model.
        targets: histories and next items.
        popularity_N: training interactions of each item, for metrics that depend on popularity.
        seed: of bootstrap intervals.
        progress: called with the number of finished histories.
    """
    histories = [history.astype(np.int64) for history in targets.histories()]
    rows_TK = write_all(writer, histories, user_ids_of(targets), progress=progress)
    ranks_T = ranks_in(rows_TK, targets.rows_T, len(popularity_N))
    return evaluation_of(ranks_T, rows_TK, targets, histories, popularity_N, seed=seed)
