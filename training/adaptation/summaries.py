"""Summaries as a pretext task (Li et al. 2024, Llama2Vec, sections 3.1 and 3.2): a decoder learns to gather a text in a
few states.

Behind a text stand two prompts. From the last states of the first the words of the text itself are predicted (EBAE,
embedding-based auto-encoding), from those of the second the words of the title that comes next (EBAR, embedding-based
auto-regression), as a bag: no order, no decoder. The text is predicted token by token beside it.

Shape legend: B texts, T tokens, K tokens of a summary, H width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modeling.backbone.loading import BackboneError, TextTokenizer
from modeling.backbone.with_head import load_with_head
from modeling.encoder.build import summary_tokens
from modeling.encoder.pooling import POOLINGS
from modeling.encoder.summary_tokens import summary_words
from training.adaptation.backbones import LORA, Adapted
from training.adaptation.passages import PassageBatch, Passages, Summaries
from training.adaptation.spec import AdaptationSpec
from training.adaptation.steps import train_steps
from training.recipe import Recipe

BAG_DIVISOR = 10.0
"""Divisor of the bag-of-words loss, as published."""
TOP = 50
"""Number of tokens with the highest logits among which words are searched, in the metrics."""
SPREAD = 0.1
"""Standard deviation of the noise on the initial new rows, relative to that of the vocabulary."""


@dataclass
class SummaryStage:
    """The stage of a run; see `training.loop.stages.Stage`. Without steps it only extends the vocabulary."""

    adapted: Adapted
    recipe: Recipe
    passages: Passages
    spec: AdaptationSpec
    seed: int
    name: str = "summaries"
    objective: str = "bags of words of a text and of the next title, from states behind the text; and its next tokens"

    def run(self, work: Path) -> dict[str, Any]:
        """Train a LoRA and the new rows of the vocabulary, merge it and store the backbone in ``work``.

        Raises:
            BackboneError: the second prompt sees the first.
        """
        model = load_with_head(self.adapted.backbone, folder=self.adapted.folder, download=self.adapted.download)
        torch.manual_seed(self.seed)
        words = new_words(self.recipe)
        pieces = self.adapted.pieces(words)
        new = extend(model, [ids[0] for ids in pieces.fixed(words)])
        behind = summaries_of(self.recipe, pieces)
        body, head = cast(Any, model).base_model, cast(Any, model).get_output_embeddings()
        prove_apart(body, PassageBatch.of(self.passages.held_out[:2], behind), behind)
        tuned = LORA.attach(body)
        head.requires_grad_(False)
        rows = train_rows_only(body, new)

        def loss_of(batch: PassageBatch) -> Tensor:
            return passage_loss(states_of(tuned, batch), head, batch)

        before = self._figures(tuned, head, behind)
        losses = train_steps(
            tuned, self.passages.trained, loss_of, collate=lambda drawn: PassageBatch.of(drawn, behind),
            steps=self.spec.passage_steps, count=self.spec.texts, rate=self.spec.rate, seed=self.seed, stage=self.name,
        )  # fmt: skip
        after = self._figures(tuned, head, behind)
        rows.requires_grad_(False)
        self.adapted.store(LORA.merge(tuned), work, words)
        return {"before": before, "after": after, "steps": len(losses), "new_words": len(new)}

    def restore(self, work: Path) -> None:
        """Go on with the backbone that it left."""
        self.adapted.take(work)

    @torch.no_grad()
    def _figures(self, model: nn.Module, head: nn.Module, behind: Summaries) -> dict[str, float]:
        """On held-out texts: the loss, and the shares of the words that are among the TOP tokens of a summary."""
        model.eval()
        held, sums = self.passages.held_out, torch.zeros(3)
        for at in range(0, len(held), self.spec.texts):
            batch = PassageBatch.of(held[at : at + self.spec.texts], behind)
            states_BTH = states_of(model, batch)
            loss = float(passage_loss(states_BTH, head, batch))
            sums += len(batch.own) * torch.tensor([
                loss,
                named(summary_logits(states_BTH, head, batch.own_BK), batch.own),
                named(summary_logits(states_BTH, head, batch.following_BK), batch.following),
            ])  # fmt: skip
        names = "loss", "own_words_in_top_50", "next_words_in_top_50"
        return {name: round(float(each) / len(held), 6) for name, each in zip(names, sums, strict=True)}


def new_words(recipe: Recipe) -> list[str]:
    """Words that the vocabulary is extended by: two sets where summaries are pooled, none where an end token is."""
    if not POOLINGS[recipe.pooling.kind].needs_summary:
        return []
    return [*summary_words("own", recipe.pooling.count), *summary_words("next", recipe.pooling.count)]


def summaries_of(recipe: Recipe, pieces: TextTokenizer) -> Summaries:
    """The prompts behind a text: those that close an item and a history when they are encoded.

    Raises:
        BackboneError: an end token is pooled, and the tokenizer has none.
    """
    closings = [pieces.fixed([text])[0] if text else [] for text in (recipe.items.closing, recipe.history.closing)]
    if POOLINGS[recipe.pooling.kind].needs_summary:
        ends = [summary_tokens(recipe, pieces, purpose) for purpose in ("own", "next")]
    elif found := pieces.ends[1]:
        ends = [found, found]
    else:
        raise BackboneError(f"pooling.kind='eos' reads an end token, and {recipe.backbone.source!r} has none")
    count = len(ends[0]) if POOLINGS[recipe.pooling.kind].needs_summary else 1
    return Summaries(closings[0] + ends[0], closings[1] + ends[1], count)


def extend(model: nn.Module, new: Sequence[int]) -> list[int]:
    """Give the vocabulary rows for new tokens, which start near the mean of the others; their ids."""
    if not new:
        return []
    inner = cast(Any, model)
    old = inner.get_input_embeddings().num_embeddings
    inner.resize_token_embeddings(max(old, max(new) + 1), mean_resizing=False)
    with torch.no_grad():
        for table in {
            id(part): part for part in (inner.get_input_embeddings(), inner.get_output_embeddings())
        }.values():
            known_VH = table.weight[: min(old, min(new))].float()
            noise_NH = torch.randn(len(new), known_VH.shape[1]) * known_VH.std(0) * SPREAD
            table.weight[list(new)] = (known_VH.mean(0) + noise_NH).to(table.weight.dtype)
    return list(new)


def train_rows_only(body: nn.Module, rows: Sequence[int]) -> Tensor:
    """Let these rows of the input embeddings be trained, and no others; the table."""
    table = cast(Tensor, cast(Any, body).get_input_embeddings().weight)
    if rows:
        kept_V1 = torch.zeros(len(table), 1, dtype=table.dtype)
        kept_V1[list(rows)] = 1
        table.requires_grad_(True)
        table.register_hook(lambda gradient: gradient * kept_V1)
    return table


def states_of(model: nn.Module, batch: PassageBatch) -> Tensor:
    """States [B, T, H] of texts and both prompts, in one pass."""
    found = cast(Any, model)(
        input_ids=batch.tokens_BT, attention_mask=batch.sees_BTT[:, None], position_ids=batch.positions_BT,
        use_cache=False,
    )  # fmt: skip
    return cast(Tensor, found.last_hidden_state)


def summary_logits(states_BTH: Tensor, head: nn.Module, places_BK: Tensor) -> Tensor:
    """Logits [B, V]: of each token the highest over the states of a summary."""
    rows_B1 = torch.arange(len(places_BK))[:, None]
    return cast(Tensor, head(states_BTH[rows_B1, places_BK]).float().amax(1))


def bag_loss(logits_BV: Tensor, words: Sequence[Tensor]) -> Tensor:
    """Mean negative log-probability of the distinct words of each text, divided by 10."""
    log_BV = F.log_softmax(logits_BV, dim=-1)
    each_B = [-log_BV[row, ids.unique()].mean() for row, ids in enumerate(words)]
    return torch.stack(each_B).mean() / BAG_DIVISOR


def passage_loss(states_BTH: Tensor, head: nn.Module, batch: PassageBatch) -> Tensor:
    """Cross-entropy of the text's next tokens, and half of both bags."""
    own = bag_loss(summary_logits(states_BTH, head, batch.own_BK), batch.own)
    following = bag_loss(summary_logits(states_BTH, head, batch.following_BK), batch.following)
    return text_loss(states_BTH, head, batch) + (own + following) / 2


def text_loss(states_BTH: Tensor, head: nn.Module, batch: PassageBatch) -> Tensor:
    """Mean cross-entropy of the tokens of the texts, each from the state before it; the prompts have none."""
    wanted_BT = batch.text_BT[:, 1:]
    if not bool(wanted_BT.any()):
        return states_BTH.sum() * 0
    return F.cross_entropy(head(states_BTH[:, :-1][wanted_BT]).float(), batch.tokens_BT[:, 1:][wanted_BT])


def named(logits_BV: Tensor, words: Sequence[Tensor]) -> float:
    """Mean share of each text's words that are among its TOP tokens."""
    top_BK = logits_BV.topk(min(TOP, logits_BV.shape[1])).indices
    return float(
        torch.stack([torch.isin(ids, top).float().mean() for ids, top in zip(words, top_BK, strict=True)]).mean()
    )


@torch.no_grad()
def prove_apart(body: nn.Module, batch: PassageBatch, behind: Summaries) -> None:
    """Change the first prompt and see whether states of the second or of the text move.

    Raises:
        BackboneError: they do, or nothing moves: the model does not use the mask that it is given.
    """
    states_BTH = states_of(body, batch)
    changed_BT = batch.tokens_BT.clone()
    rows_B1 = torch.arange(len(changed_BT))[:, None]
    places_BF = batch.own_BK[:, -1:] - torch.arange(len(behind.own))
    changed_BT[rows_B1, places_BF] = batch.tokens_BT[:, :1] + 1
    other = PassageBatch(changed_BT, *list(vars(batch).values())[1:])
    moved_BT = (states_of(body, other) - states_BTH).abs().amax(-1)
    leaked = max(float(moved_BT[batch.text_BT].max()), float(moved_BT[rows_B1, batch.following_BK].max()))
    if leaked > 1e-3 or float(moved_BT[rows_B1, batch.own_BK].max()) <= leaked:
        raise BackboneError(
            f"{type(body).__name__} does not keep two prompts behind a text apart (states move by {leaked:.2g}): "
            "method.adaptation.passage_steps needs a decoder that takes a mask of its own"
        )
