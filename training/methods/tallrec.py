"""Trains a language model to predict whether a user will like an item (TALLRec), from a few examples."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal, cast

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from modeling.methods.base_ranking import RankPrompt
from modeling.methods.tallrec import TallrecRanker, YesNoPrompt
from training.data.splits import Split, Targets
from training.evaluation.pairs import Answers
from training.loop.examples import Window
from training.loop.fit import FitOptions
from training.methods.base_prompted import PromptedSettings, PromptedTraining, others_at_random
from training.recipe import Recipe, RecipeError

BATCH = 32


class TallrecSettings(PromptedSettings):
    """Settings of TALLRec. ``sequences`` is the number of shots: training examples, drawn once."""

    kind: Literal["tallrec"] = "tallrec"
    labels: tuple[str, ...] = Field(("Yes", "No"), description="the two answers, yes first; single tokens")
    answers: Literal["ratings", "choices"] = Field(
        "ratings", description="ratings: yes is a rating above liked_above; choices: yes is a chosen item, no a random "
        "other item",
    )  # fmt: skip
    liked_above: float = Field(3.0, description="ratings above this value are likes; method.answers=ratings only")

    @classmethod
    def effects(cls) -> Any:
        """``liked_above`` has an effect with ``answers='ratings'`` only."""
        from training.effects import Effect

        rated = Effect("method.answers='ratings'", lambda recipe: recipe.method.answers == "ratings")
        return {**super().effects(), "liked_above": rated}

    def check(self, recipe: Recipe) -> None:
        """Raises ``ValueError`` unless there are two labels."""
        super().check(recipe)
        if len(self.labels) != 2:
            raise ValueError(f"method.labels={list(self.labels)}: yes and no are two")


class Opinions:
    """Labels liked and disliked for interactions, from ratings or from the choices themselves.

    Args:
        split: of the data.
        settings: of the method; ``answers`` decides where labels come from.

    Raises:
        RecipeError: ``answers='ratings'`` and an interaction has no rating.
    """

    def __init__(self, split: Split, settings: TallrecSettings) -> None:
        self.data, self.settings = split.dataset, settings
        self.liked_R: NDArray[np.bool_] | None = None
        if settings.answers == "choices":
            return
        if "rating" not in self.data.columns.columns or self.data.columns["rating"].null_count():
            raise RecipeError(
                f"method.answers='ratings' needs a rating for every interaction, and {self.data.name} has "
                "not; allowed is method.answers=choices"
            )
        self.liked_R = self.data.columns["rating"].to_numpy() > settings.liked_above

    def before(self, user: int, start: int, count: int) -> list[bool]:
        """Whether each of ``count`` items from index ``start`` of a user's sequence was disliked."""
        if self.liked_R is None:
            return [False] * count
        first = int(self.data.offsets_U1[user]) + start
        return [not liked for liked in self.liked_R[first : first + count].tolist()]

    def questions(
        self, user: int, place: int, history: NDArray[Any], rng: np.random.Generator
    ) -> list[tuple[int, bool]]:
        """Candidates at an index of a user's sequence, each with the answer (True: yes): the chosen item if there are
        ratings, otherwise the chosen item and a random other item."""
        first = int(self.data.offsets_U1[user]) + place
        row = int(self.data.rows[first])
        if self.liked_R is not None:
            return [(row, bool(self.liked_R[first]))]
        (other,) = others_at_random([*history.tolist(), row], self.data.n_items, 1, rng).tolist()
        return [(row, True), (other, False)]


def yes_or_no(ranker: TallrecRanker, targets: Targets, opinions: Opinions, *, seed: int) -> Answers:
    """Scores of a ranker for the questions about each target, and the right answers."""
    rng, prompts, right = np.random.default_rng([seed, 7]), [], []
    for number, history in enumerate(targets.histories()):
        user, place = int(targets.users_T[number]), int(targets.positions_T[number])
        newest = history[-ranker.titles :].astype(np.int64)
        asked = opinions.questions(user, place, history, rng)
        disliked = opinions.before(user, place - len(newest), len(newest))
        prompts.append(ranker.prepare_rated(newest.tolist(), disliked, [row for row, _ in asked]))
        right += [yes for _, yes in asked]
    scores = [score for part in _parts(prompts) for score in ranker.score(part)]
    return Answers(np.array(right, bool), np.concatenate(scores))


def yes_no_figures(said: Answers, *, seed: int) -> dict[str, float]:
    """AUC with its interval, number of questions, and the shares of actual and predicted likes."""
    area = said.auc(seed=seed)
    return {
        "auc": area.value, "auc_low": area.low, "auc_high": area.high, "auc_questions": len(said.right_Q),
        "liked": float(said.right_Q.mean()), "said_yes": float((said.scores_Q > 0).mean()),
    }  # fmt: skip


def _parts(prompts: Sequence[RankPrompt]) -> Iterator[Sequence[RankPrompt]]:
    return (prompts[start : start + BATCH] for start in range(0, len(prompts), BATCH))


class TallrecTraining(PromptedTraining[TallrecSettings]):
    """Trains a `modeling.methods.tallrec.TallrecRanker`."""

    kind, Settings = "tallrec", TallrecSettings
    selected_on: ClassVar[str] = "auc"
    prompt: YesNoPrompt
    opinions: Opinions

    def prepare(self, options: FitOptions) -> None:
        """See `PromptedTraining.prepare`; also reads the labels."""
        self.opinions = Opinions(self.split, self.settings)
        super().prepare(options)

    def make_prompt(self, tokenizer: Any) -> tuple[YesNoPrompt, int]:
        """See `PromptedTraining.make_prompt`."""
        history = self.recipe.history
        prompt = YesNoPrompt.of(tokenizer, history.instruction, self.settings.labels)
        return prompt, prompt.most_positions(history.limit, history.title_tokens)

    def texts(self, window: Window) -> list[int]:
        """See `PromptedTraining.texts`; of two candidates the window's seed draws one."""
        history, prompt = window.rows[:-1], self.prompt
        rng = np.random.default_rng(window.draw)
        asked = self.opinions.questions(window.user, window.start + len(history), history, rng)
        row, yes = asked[int(rng.integers(len(asked)))]
        disliked = self.opinions.before(window.user, window.start, len(history))
        names = list(zip(self.tokens(history.tolist()), disliked, strict=True))
        shared = prompt.shared([name for name, no in names if not no], [name for name, no in names if no])
        answer = prompt.answers[0 if yes else 1]
        return [*prompt.prefix, *shared, *prompt.candidate(self.named.tokens[row]), answer]

    def generator(self) -> TallrecRanker:
        """See `GenerativeTraining.generator`."""
        return TallrecRanker(self.named.model, self.names, **self.ranker_parts())

    def epoch_figures(self, generator: Any, targets: Targets, seed: int) -> dict[str, float]:
        """See `GenerativeTraining.epoch_figures`: area under the ROC curve."""
        return {"auc": self._answers(generator, targets, seed).auc(seed=seed).value}

    def chosen_on_validation(self, generator: Any, targets: Targets, seed: int) -> dict[str, Any]:
        """See `GenerativeTraining.chosen_on_validation`: AUC with its interval, and the shares of predicted and actual
        likes."""
        return {"yes_no": yes_no_figures(self._answers(generator, targets, seed), seed=seed)}

    def _answers(self, ranker: Any, targets: Targets, seed: int) -> Answers:
        return yes_or_no(cast(TallrecRanker, ranker), targets, self.opinions, seed=seed)


METHOD = TallrecTraining
