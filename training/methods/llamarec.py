"""Trains a language model to predict the letter of the next item among candidates (LlamaRec)."""

from __future__ import annotations

from string import ascii_uppercase
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from modeling.generation.api import ListQuery
from modeling.methods.base_ranking import best_rows
from modeling.methods.dense_scores import CollaborativeModel
from modeling.methods.llamarec import LetterPrompt, LlamarecRanker
from training.data.splits import Targets
from training.evaluation.two_stages import TwoStages
from training.loop.examples import Window
from training.methods.base_prompted import PromptedSettings, PromptedTraining, others_at_random
from training.recipe import Recipe


class LlamarecSettings(PromptedSettings):
    """Settings of LlamaRec."""

    kind: Literal["llamarec"] = "llamarec"
    labels: tuple[str, ...] = Field(tuple(ascii_uppercase), description="labels of candidates; single tokens")
    window: int = Field(20, ge=2, description="candidates in one prompt, in training and when served")
    negatives: Literal["random", "retrieved"] = Field(
        "random", description="negatives in training: random items, as published, or the best items of the required "
        "artifact (requires)",
    )  # fmt: skip

    def check(self, recipe: Recipe) -> None:
        """Raises ``ValueError`` if a window has more candidates than labels, or negatives need a missing retriever."""
        super().check(recipe)
        if self.window > len(self.labels):
            raise ValueError(f"method.window={self.window}: {len(self.labels)} labels are known (method.labels)")
        if self.negatives == "retrieved" and recipe.requires is None:
            raise ValueError(
                "method.negatives='retrieved' takes them from another artifact: set requires to its recipe"
            )


def training_candidates(
    history: NDArray[np.int64], target: int, retriever: CollaborativeModel | None, *, items: int, count: int,
    rng: np.random.Generator,
) -> NDArray[np.int64]:  # fmt: skip
    """The target and ``count`` - 1 negatives outside the history, in random order [count].

    Negatives are the best items for this history under ``retriever``, or random items if that is None. The order is
    random in both cases, so that the target's position carries no information.
    """
    if retriever is None:
        others = others_at_random([*history.tolist(), target], items, count - 1, rng)
    else:
        others = best_rows(retriever(history.tolist()), ListQuery(count - 1, np.append(history, target)))[0]
    return rng.permutation(np.append(others, target))


def two_stages(ranker: LlamarecRanker, targets: Targets) -> TwoStages:
    """Ranks before and after the model's stage. The model is run only for users whose target is among the candidates;
    for other users its order does not change the target's rank."""
    dense, merged = [], []
    for history, row in zip(targets.histories(), targets.rows_T.tolist(), strict=True):
        rows = history.astype(np.int64).tolist()
        found_C = ranker.retrieve(rows, ListQuery(ranker.catalog_size, np.array(rows, np.int64)))
        places = np.flatnonzero(found_C == row)
        dense.append(int(places[0]) + 1 if len(places) else ranker.catalog_size)
        merged.append(dense[-1])
        if dense[-1] <= ranker.candidates:
            asked = found_C[: ranker.candidates]
            (scores_C,) = ranker.score([ranker.prepare_candidates(rows, asked.tolist())])
            order_C = np.lexsort((asked, -scores_C))
            merged[-1] = int(np.flatnonzero(asked[order_C] == row)[0]) + 1
    dense_T, merged_T = np.array(dense, np.int64), np.array(merged, np.int64)
    return TwoStages(dense_T, merged_T, dense_T <= ranker.candidates)


class LlamarecTraining(PromptedTraining[LlamarecSettings]):
    """Trains a `modeling.methods.llamarec.LlamarecRanker`."""

    kind, Settings = "llamarec", LlamarecSettings
    selected_on: ClassVar[str] = "ndcg@10"
    prompt: LetterPrompt

    def make_prompt(self, tokenizer: Any) -> tuple[LetterPrompt, int]:
        """See `PromptedTraining.make_prompt`."""
        history = self.recipe.history
        prompt = LetterPrompt.of(tokenizer, history.instruction, self.settings.labels)
        return prompt, prompt.most_positions(history.limit, self.settings.window, history.title_tokens)

    def texts(self, window: Window) -> list[int]:
        """See `PromptedTraining.texts`; the window's seed draws the candidates and their order."""
        history, target, prompt = window.rows[:-1], int(window.rows[-1]), self.prompt
        rows = training_candidates(
            np.concatenate([window.earlier, history]), target,
            self.retriever if self.settings.negatives == "retrieved" else None,
            items=len(self.named.tokens), count=self.settings.window, rng=np.random.default_rng(window.draw),
        )  # fmt: skip
        place = int(np.flatnonzero(rows == target)[0])
        asked = prompt.candidates(self.tokens(rows.tolist()))
        return [*prompt.prefix, *prompt.shared(self.tokens(history.tolist())), *asked, prompt.answers[place]]

    def generator(self) -> LlamarecRanker:
        """See `GenerativeTraining.generator`."""
        return LlamarecRanker(self.named.model, self.names, window=self.settings.window, **self.ranker_parts())

    def epoch_figures(self, generator: Any, targets: Targets, seed: int) -> dict[str, float]:
        """See `GenerativeTraining.epoch_figures`: NDCG@10 over all targets and over those among the candidates."""
        found = two_stages(cast(LlamarecRanker, generator), targets).figures(seed=seed)
        return {name: found[name] for name in ("ndcg@10", "subset_ndcg@10") if name in found}

    def chosen_on_validation(self, generator: Any, targets: Targets, seed: int) -> dict[str, Any]:
        """See `GenerativeTraining.chosen_on_validation`: figures of both stages."""
        return {"two_stages": two_stages(cast(LlamarecRanker, generator), targets).figures(seed=seed)}


METHOD = LlamarecTraining
