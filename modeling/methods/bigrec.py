"""BIGRec (Bao et al. 2023): a language model generates a title without constraints; the nearest catalog titles are the
answer.

The best text of an unconstrained beam search is embedded in the title space of the base model
(`modeling/generation/title_space.py`), and all items are ranked by their distance to it. Optionally a distance, scaled
to [0, 1] per history, is multiplied by ``(1 + w) ** -gamma``, where ``w`` in [0, 1] is an item's popularity, or its
score under a collaborative model for this history. The nearest item has distance 0 and is first for any gamma.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from modeling.artifact.folders import ArtifactError
from modeling.artifact.part_names import Part
from modeling.artifact.tensor_files import save_arrays, save_pretrained
from modeling.backbone.loading import TextTokenizer, load_backbone
from modeling.encoder.prompt import FreeItem
from modeling.generation.api import GeneratedList, GenerationPrompt, GenerationSettings, Hypothesis, ListQuery
from modeling.generation.base import DecodeSession, ItemGenerator, ItemIdentifiers, TopK
from modeling.generation.beam_search import Text
from modeling.generation.factory import decoder_of
from modeling.generation.item_tokenizer import TitleTokenizer
from modeling.generation.title_space import TitleSpace
from modeling.inference.int8_linear import dtype_of
from modeling.methods.base import LoadContext
from modeling.methods.base_generative import GenerativeMethod, GeneratorRecord, made_ready, title_end
from modeling.methods.bigrec_prompt import InstructionPrompt
from modeling.methods.dense_scores import COLLABORATIVE, CollaborativeModel
from modeling.spec import BackboneSpec

BASE, SPACE = "grounding", "title_space.safetensors"

Collaborative = Callable[[Sequence[int]], NDArray[np.float32]]
"""Scores [N] of all items for a history of catalog rows, oldest first."""


@dataclass(frozen=True)
class Exponents:
    """Gamma of the popularity and of the collaborative weight; 0 disables a weight."""

    popularity: float = 0.0
    collaborative: float = 0.0


class BigRecGenerator(ItemGenerator):
    """Generates a title without constraints and grounds it in the catalog.

    Args:
        model: the tuned Hugging Face model for causal language modelling.
        names: titles of the catalog's items, as tokens.
        prompt: builds the prompt of a history.
        space: vectors of all titles, searched for the nearest ones to a generated text.
        popularity_N: number of training interactions of each item.
        collaborative: scores of all items; None without a collaborative model.
        exponents: of the two weights, chosen on validation.
        history_limit: maximum number of items read, counted from the newest.
        default: decoding settings of the evaluation.
    """

    def __init__(
        self,
        model: nn.Module,
        names: ItemIdentifiers,
        *,
        prompt: InstructionPrompt,
        space: TitleSpace,
        popularity_N: NDArray[np.int64],
        collaborative: Collaborative | None = None,
        exponents: Exponents = Exponents(),
        history_limit: int,
        default: GenerationSettings,
    ) -> None:
        longest = int(np.diff(names.tokens.offsets).max(initial=1)) + prompt.answer_extra
        super().__init__(
            model, names, end=prompt.end, prefix=prompt.prefix, history_limit=history_limit, default=default,
            longest=longest,
        )  # fmt: skip
        assert isinstance(names.spelling, TitleTokenizer), "codes cannot be written freely"
        self.prompt, self.space, self.spelling = prompt, space, names.spelling
        self.collaborative, self.exponents, self.popularity_N = collaborative, exponents, popularity_N
        self._popular_N = _unit(popularity_N.astype(np.float64))
        self._pieces = TextTokenizer(names.spelling.tokenizer)
        self._rows = _rows_by_text(names)

    @property
    def networks(self) -> dict[Part, nn.Module]:
        """The tuned model, the base model and, if there is one, the collaborative model."""
        found = {**super().networks, Part.TITLE_SPACE: self.space}
        return found | ({Part.COLLABORATIVE: self.collaborative} if isinstance(self.collaborative, nn.Module) else {})

    @property
    def bodies(self) -> list[nn.Module]:
        """The base model without its head, then the tuned one."""
        return [self.space.body, *super().bodies]

    def prepare(self, history: Sequence[int | FreeItem], user_id: str | None = None) -> GenerationPrompt:
        """The history in quotation marks and the request for an answer; an empty history is the request alone."""
        newest = history[-self.history_limit :]
        tokens = self.prompt.read([self.name(item) for item in newest])
        return GenerationPrompt(tuple(tokens), tuple(item for item in newest if not isinstance(item, FreeItem)))

    def _write(
        self, prompts: Sequence[GenerationPrompt], wanted: Sequence[ListQuery], search: DecodeSession
    ) -> list[GeneratedList]:
        """Rank the whole catalog by the best non-empty text; its ``distance`` is that to the nearest title. Other texts
        are only checked for being a catalog title, letter by letter."""
        found = self._texts(prompts, search)
        seconds, started = search.seconds(), time.perf_counter()
        with search.turn():
            distances = self._distances(found)
        seconds["ground"], started = time.perf_counter() - started, time.perf_counter()
        written = [
            self._answer(*parts, search.new_tokens, seconds)
            for parts in zip(found, distances, prompts, wanted, strict=True)
        ]
        seconds["search"] = time.perf_counter() - started
        return written

    def text_of(self, row: int) -> str:
        """The title of a row as the model generates it: truncated to the stored tokens, without quotation marks."""
        return self._shown(self.names.tokens[row].tolist())

    def nearest(self, text: str) -> int:
        """The row of the title nearest to a generated text."""
        rows = self._rows.get(_bare(text), ())
        given = Hypothesis(_bare(text), 0.0, bool(rows), rows[0] if rows else None)
        (distance_N,) = self._distances([[given]])
        assert distance_N is not None, "an empty text is grounded to nothing"
        return self._nearest(distance_N, ListQuery(1))[0]

    def read_distances(self, prompts: Sequence[GenerationPrompt]) -> list[NDArray[np.float32] | None]:
        """Unweighted distances [N] of all titles to the text generated for each prompt; None if all texts are empty."""
        return self._distances(self._texts(prompts, self._search()))

    def scaled(self, distance_N: NDArray[np.float32]) -> NDArray[np.float64]:
        """Distances [N] scaled to [0, 1], the nearest to 0."""
        return _unit(distance_N.astype(np.float64))

    def weights(self, history: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Popularity and collaborative weights of all items in [0, 1], [N] each; the latter zero without a model."""
        if self.collaborative is None or not history:
            return self._popular_N, np.zeros_like(self._popular_N)
        return self._popular_N, _unit(self.collaborative(history).astype(np.float64))

    def ranked(self, distance_N: NDArray[np.float32], history: Sequence[int]) -> NDArray[np.float64]:
        """Ranking keys [N], lower is better: the distances without exponents, else scaled to [0, 1] and weighted."""
        if self.exponents == Exponents():
            return distance_N.astype(np.float64)
        popular_N, collaborative_N = self.weights(history if self.exponents.collaborative else ())
        weight_N = (1 + popular_N) ** -self.exponents.popularity
        weight_N *= (1 + collaborative_N) ** -self.exponents.collaborative
        return self.scaled(distance_N) * weight_N

    def _texts(self, prompts: Sequence[GenerationPrompt], search: DecodeSession) -> list[list[Hypothesis]]:
        found = search.run([prompt.tokens for prompt in prompts])
        return [[self._generated(text) for text in each] for each in found]

    def _shown(self, tokens: Sequence[int]) -> str:
        return _bare(self.spelling.text(tokens))

    def _generated(self, text: Text) -> Hypothesis:
        shown = self._shown(text.tokens)
        rows = self._rows.get(shown, ())
        return Hypothesis(shown, text.score, bool(rows), rows[0] if rows else None, 0.0 if rows else None)

    def _distances(self, found: Sequence[Sequence[Hypothesis]]) -> list[NDArray[np.float32] | None]:
        """Distances [N] of all titles to the best text of each list; None if all its texts are empty.

        Vectors of catalog titles are stored; only other texts are embedded.
        """
        best = [_best(texts) for texts in found]
        unknown = [text.text for text in best if text is not None and not text.valid]
        read = iter(self.space.embed([ids[: self.spelling.limit] for ids in self._pieces(unknown)]) if unknown else ())
        vectors = [
            None if text is None else self.space.vectors_NH[text.row] if text.valid else next(read) for text in best
        ]
        if not (known := [vector for vector in vectors if vector is not None]):
            return [None] * len(vectors)
        distances = iter(self.space.distances(torch.stack(known)))
        return [None if vector is None else next(distances) for vector in vectors]

    def _answer(
        self,
        texts: list[Hypothesis],
        distance_N: NDArray[np.float32] | None,
        prompt: GenerationPrompt,
        wanted: ListQuery,
        new: int,
        seconds: dict[str, float],
    ) -> GeneratedList:
        places, best = TopK(wanted), _best(texts)
        if best is None or distance_N is None:
            places.fill(self.names.popular_N.tolist())
        else:
            ranked_N = self.ranked(distance_N, prompt.rows)
            for row in self._nearest(ranked_N, wanted):
                places.offer(row, -float(ranked_N[row]))
            nearest = self._nearest(distance_N, ListQuery(1))[0]
            grounded = replace(best, row=nearest, distance=float(distance_N[nearest]))
            texts = [grounded if text is best else text for text in texts]
        return places.answer(texts, prompt.length, new, seconds)

    def _nearest(self, distance_N: NDArray[np.floating], wanted: ListQuery) -> list[int]:
        """Rows by distance, as many as the answer can need; ties by popularity."""
        order = self.names.popular_N
        if wanted.allowed is not None:
            order = order[np.isin(order, wanted.allowed)]
        near = distance_N[order]
        enough = min(wanted.k + len(wanted.exclude), len(order))
        if enough < len(order):
            within = near <= np.partition(near, enough - 1)[enough - 1]
            order, near = order[within], near[within]
        found: list[int] = order[np.argsort(near, kind="stable")].tolist()
        return found


def _unit(values_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values scaled so that the smallest is 0 and the largest 1; zeros if all are equal."""
    low, high = values_N.min(), values_N.max()
    return (values_N - low) / (high - low) if high > low else np.zeros_like(values_N)


def _best(texts: Sequence[Hypothesis]) -> Hypothesis | None:
    """The best non-empty text, or None."""
    return next((text for text in texts if text.text), None)


def _bare(text: str) -> str:
    """A title without surrounding quotation marks and spaces."""
    return text.strip().strip('"').strip()


def _rows_by_text(names: ItemIdentifiers) -> dict[str, tuple[int, ...]]:
    """Rows of every text, most popular first."""
    rows: dict[str, list[int]] = defaultdict(list)
    for row in names.popular_N.tolist():
        rows[_bare(names.spelling.text(names.tokens[row].tolist()))].append(row)
    return {text: tuple(found) for text, found in rows.items() if text}


class BigRecRecord(GeneratorRecord):
    """Manifest record of a `BigRecGenerator`.

    Attributes:
        instruction: first text of the prompt.
        joined_marks: whether the marks between two titles are tokenized together.
        popularity_exponent, collaborative_exponent: gamma of the two weights.
        collaborative: whether ``parts/collaborative`` holds a dense artifact of the same catalog.
    """

    instruction: str
    popularity_exponent: float
    collaborative_exponent: float
    collaborative: bool
    joined_marks: bool = False


class BigRec(GenerativeMethod[BigRecRecord]):
    """Stores, besides the language model: the base model, unless it follows from the adapter; its vectors of all titles
    and the popularity of each item; and optionally a dense artifact. No trie is built."""

    kind, Record = "bigrec", BigRecRecord

    def save_parts(self, folder: Path, model: BigRecGenerator) -> dict[str, Any]:
        """See `GenerativeMethod.save_parts`."""
        if model.tuned is None:
            save_pretrained(model.space.body, folder / BASE)
        vectors_NH = model.space.vectors_NH.cpu().numpy()
        save_arrays({"vectors": vectors_NH, "popularity": model.popularity_N.astype(np.int64)}, folder / SPACE)
        stored = model.collaborative if isinstance(model.collaborative, CollaborativeModel) else None
        if stored is not None:
            stored.copy_to(folder)
        return {
            "instruction": model.prompt.instruction,
            "joined_marks": model.prompt.joined,
            "popularity_exponent": model.exponents.popularity,
            "collaborative_exponent": model.exponents.collaborative,
            "collaborative": stored is not None,
        }

    def generator(
        self,
        record: BigRecRecord,
        context: LoadContext,
        network: nn.Module,
        names: ItemIdentifiers,
        base: nn.Module | None,
    ) -> BigRecGenerator:
        """See `GenerativeMethod.generator`. The base has the tuned model's precision; the dense artifact is fp32."""
        files, size = context.files, context.manifest.catalog_size
        tokenizer = cast(Any, names.spelling).tokenizer
        body = _base_body(base, context)
        arrays = files.arrays(SPACE)
        vectors_NH, popularity_N = arrays["vectors"], arrays["popularity"]
        expected = (size, int(cast(Any, body).config.hidden_size))
        if vectors_NH.shape != expected or popularity_N.shape != expected[:1]:
            raise ArtifactError(
                f"{SPACE} of {files.name} holds vectors {vectors_NH.shape} and popularity {popularity_N.shape}; the "
                f"catalog and {BASE}/ expect {expected}"
            )
        end = title_end(record, context, "a grounding")
        return BigRecGenerator(
            network,
            names,
            prompt=InstructionPrompt.of(tokenizer, record.instruction, end, joined=record.joined_marks),
            space=TitleSpace(body, vectors_NH, TextTokenizer(tokenizer).wrap[0]),
            popularity_N=popularity_N,
            collaborative=CollaborativeModel(files.below(COLLABORATIVE), size) if record.collaborative else None,
            exponents=Exponents(record.popularity_exponent, record.collaborative_exponent),
            history_limit=record.history_limit,
            default=record.default,
        )


METHOD = BigRec()


def _base_body(base: nn.Module | None, context: LoadContext) -> nn.Module:
    """The untuned model without its head: the base under the adapter, or the model stored in ``grounding/``."""
    if base is not None:
        return made_ready(decoder_of(base), context, lambda body: body)
    dtype = dtype_of(context.precision)
    found, _ = load_backbone(BackboneSpec(source=BASE), folder=context.files.below(BASE), dtype=dtype)
    return made_ready(found, context, lambda body: body)
