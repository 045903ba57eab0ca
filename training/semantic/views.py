"""Views of histories that a language model has written about, and the losses that draw a history to them.

A text is written about the first items of a training history, up to a place in it; the item at this place is the target
of that state and stands in no view. In a step every target that has a text is drawn to the text's vector (``texts``),
and to the state of the same history without the items that are least like the text (``drops``). The language models are
not asked in training: all texts are written before.

Shape legend: R texts, C width of a text vector, V histories of a batch with a text, H width of a state, N items.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor, nn

from modeling.encoder.build import Sources
from training.data.report import DataError
from training.data.splits import Split
from training.effects import Effect
from training.evaluation.work import Work
from training.loop.auxiliary import Auxiliary, Step
from training.loop.budget import check_time
from training.objectives.contrastive import SemanticSpec
from training.objectives.views import ViewsSpec, cosine_nce
from training.recipe import Recipe
from training.semantic.contrast import states_of
from training.semantic.neighbours import Floats, Ints, unit
from training.semantic.texts import MADE_HERE, SMALLEST, read_texts, text_vectors
from training.semantic.writing import Writer, write_or_reuse


def views_effects() -> Mapping[str, Effect]:
    """When a setting of ``method.views`` is read, by its path inside the section of the method."""

    def weighed(*names: str) -> Effect:
        def acts(recipe: Recipe) -> bool:
            spec: Any = recipe.method
            return any(getattr(spec.views, name) for name in names)

        return Effect(f"{' or '.join('method.views.' + name for name in names)} over 0", acts)

    either = weighed("texts", "drops")
    others = set(ViewsSpec.model_fields) - {"texts", "drops", "dropped"}
    return {f"views.{name}": either for name in sorted(others)} | {"views.dropped": weighed("drops")}


def check_views(recipe: Recipe, spec: ViewsSpec) -> None:
    """Raises ``ValueError`` for states that are not there, and for a model that is made later than it would write."""
    if not spec.used:
        return
    if not recipe.has_network:
        raise ValueError("method.views compares states of a network: projector.kind='none' has none")
    for name in ("writer", "source"):
        if getattr(spec, name) == MADE_HERE:
            raise ValueError(
                f"method.views.{name}={MADE_HERE!r} is trained on this catalog; a pretrained language model is needed, "
                "such as a name of the list of backbones, a Hugging Face name or a folder"
            )


@dataclass(frozen=True)
class Views:
    """Texts about beginnings of histories, as vectors.

    Attributes:
        rows: number of the text, by user and length of the beginning.
        vectors_RC: unit vectors of the texts.
        titles_NC: unit vectors of the titles, in the same space.
        texts: as they were written.
    """

    rows: Mapping[tuple[int, int], int]
    vectors_RC: Floats
    titles_NC: Floats
    texts: list[str]

    @property
    def record(self) -> dict[str, Any]:
        """Facts for the manifest."""
        digest = hashlib.sha256(json.dumps([sorted(self.rows.items()), self.texts]).encode()).hexdigest()
        users = len({user for user, _ in self.rows})
        return {"sha256": digest, "texts": len(self.texts), "users": users, "distinct": len(set(self.texts))}


def beginnings_of(histories: Sequence[Ints], spec: ViewsSpec, seed: int) -> list[tuple[int, int]]:
    """Users and lengths of the beginnings that are written about: never a whole history, so that each has a target."""
    known = np.asarray([user for user, rows in enumerate(histories) if len(rows) > 1], np.int64)
    drawn = np.random.default_rng([seed, 8]).permutation(known)[: spec.users]
    found = []
    for user in np.sort(drawn).tolist():
        most = len(histories[user]) - 1
        lengths = {int(np.ceil(most * step / spec.each)) for step in range(1, spec.each + 1)}
        found += [(user, length) for length in sorted(lengths)]
    return found


def write_views(
    spec: ViewsSpec, split: Split, histories: Sequence[Ints], sources: Sources, *, seed: int, console: Console
) -> Views:
    """Write about training histories, and read what was written.

    Args:
        spec: who writes and reads, and how much.
        split: whose titles are shown.
        histories: training rows of every user, oldest first; nothing else is shown.
        sources: where texts and vectors are kept.
        seed: of the users who are drawn, and of the control.
        console: for progress.

    Raises:
        BackboneError: a model is not found, or cannot write.
        DataError: fewer than two texts were written, or all are read as one.
        OutOfTime: the run's budget ended; what was written is kept.
    """
    asked, titles = beginnings_of(histories, spec, seed), split.dataset.titles
    writer = Writer(spec, download=sources.download)
    shown = [[titles[row] for row in histories[user][:length][-spec.newest :]] for user, length in asked]
    with Work(console, f"writing about {len(shown):,} histories ({spec.writer})", len(shown)) as work:

        def progress(done: int) -> None:
            work(done)
            check_time("writing about histories (texts are kept, and the next run goes on from them)")

        texts = write_or_reuse(writer, shown, sources.vectors, progress=progress)
    written = [number for number, text in enumerate(texts) if text]
    if len(written) < 2:
        raise DataError(
            f"method.views.writer={spec.writer!r} wrote about {len(written)} of {len(texts)} histories, and two texts "
            "are needed: take another writer, or more users (method.views.users)"
        )
    kept = [texts[number] for number in written]
    raw_RC = read_texts(spec.source, kept, sources, console, "method.views.source")
    vectors_RC = unit(raw_RC - raw_RC.mean(0))
    if spec.random:
        vectors_RC = vectors_RC[_others(len(kept), np.random.default_rng([seed, 9]))]
    titles_NC = text_vectors(SemanticSpec(source=spec.source), split, histories, sources, console)
    rows = {asked[number]: row for row, number in enumerate(written)}
    return Views(rows, vectors_RC, titles_NC, kept)


def _others(count: int, rng: np.random.Generator) -> Ints:
    """A random order in which nothing stays in its place."""
    order = rng.permutation(count)
    found = np.empty(count, np.int64)
    found[order] = np.roll(order, 1)
    return found


class ViewContrast(Auxiliary):
    """See the module.

    Args:
        spec: weights and settings.
        views: of the training part.
        histories: training rows of every user, as views were made from.
        width: H.
    """

    vectors_RC: Tensor

    def __init__(self, spec: ViewsSpec, views: Views, histories: Sequence[Ints], width: int) -> None:
        super().__init__()
        self.spec = spec
        self._views, self._histories = views, histories
        self.register_buffer("vectors_RC", torch.from_numpy(views.vectors_RC), persistent=False)
        self.map = nn.Linear(views.vectors_RC.shape[1], width, bias=False) if spec.texts else None

    def forward(self, step: Step) -> Tensor:
        """The weighed losses; each is a mean over the histories with a text, and counts for their share of the batch's
        windows, times the targets of the batch, as that of the objective becomes a mean."""
        batch = step.batch
        keys = list(zip(batch.owners_P.tolist(), batch.places_P.tolist(), strict=True))
        places = [place for place, key in enumerate(keys) if key in self._views.rows]
        loss = step.states_PH.new_zeros((), dtype=torch.float32)
        if len(places) < 2:
            return loss if self.map is None else loss + 0.0 * self.map.weight.sum()
        device, texts = step.states_PH.device, [self._views.rows[keys[place]] for place in places]
        states_VH, targets_V = step.states_PH[places].float(), batch.targets_P[places].to(device)
        if self.map is not None:
            texts_VH = self.map(self.vectors_RC[texts])
            loss = loss + self.spec.texts * cosine_nce(states_VH, texts_VH, targets_V, self.spec.temperature)
        if self.spec.drops:
            views = [self.view(*keys[place], row) for place, row in zip(places, texts, strict=True)]
            views_VH = states_of(step.encoder, views)
            loss = loss + self.spec.drops * cosine_nce(states_VH, views_VH, targets_V, self.spec.temperature)
        windows = len(batch.prompts.spans.rows_P)
        return loss * batch.count * min(1.0, len(places) / windows)

    def view(self, user: int, length: int, row: int) -> Ints:
        """The beginning of a history without a share of its newest items: the least like text ``row`` of a random
        draw, whose order is that of standardised likeness plus Gumbel noise (Kool et al. 2019)."""
        history = self._histories[user][:length]
        shown = history[-self.spec.newest :]
        count = min(len(shown) - 1, round(self.spec.dropped * len(shown)))
        noise_K = -np.log(-np.log(torch.rand(len(shown)).double().clamp(1e-9, 1 - 1e-9).numpy()))
        if not self.spec.random:
            like_K = self._views.titles_NC[shown] @ self._views.vectors_RC[row]
            noise_K += (like_K - like_K.mean()) / max(float(like_K.std()), SMALLEST)
        kept = np.ones(len(history), bool)
        kept[len(history) - len(shown) + np.argsort(noise_K, kind="stable")[:count]] = False
        found: NDArray[np.int64] = history[kept]
        return found
