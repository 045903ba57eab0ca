"""Bodies of `POST /recommend`: a history in, ranked items out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, cast

from pydantic import FailFast, Field, field_validator, model_validator

from index.filters.body import FILTER, FilterBody, FilterField
from index.filters.stored import LONGEST_NAME, MOST_ATTRIBUTES
from modeling.text import plain_text
from service.http.schemas.base import MAX_ID, REQUEST_ID, Answer, Body
from service.recommend.diversity import Diversity
from service.recommend.requests import RecommendQuery, TitledItem
from service.recommend.sentences import Reason

MAX_HISTORY = 10_000
MAX_EXCLUDE = 10_000
MAX_CATEGORIES = 100
MAX_K = 1000
MAX_TITLE = 2000
MAX_CANDIDATES = 1000
MAX_EXPLAINED = 100
DIVERSE_FACTOR, DIVERSE_LEAST = 4, 100  # candidates of a diverse answer where the request names no number

UserId = Annotated[str, Field(min_length=1, max_length=MAX_ID)]
FieldName = Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)]
FieldNames = Annotated[list[FieldName], FailFast()]
MAX_FIELDS = MOST_ATTRIBUTES + 1
FIELDS = "Fields of the items in the answer, beside the title: `categories`, and attributes by name."
CATEGORIES_ASKED = "Category names; only where `fields` asks for `categories`."
ATTRIBUTES_ASKED = (
    "Values of the attributes that `fields` asks for, by name; one that the item lacks is not among them."
)
AnsweredAttributes = dict[str, str | float | bool | list[str]]


class FreeTitle(Body):
    """An item that is known by its title alone, for models that read text."""

    title: str = Field(min_length=1, max_length=MAX_TITLE, description="free text, e.g. a title not in the catalog")

    @field_validator("title")
    @classmethod
    def _not_blank(cls, title: str) -> str:
        plain = plain_text(title)
        if not plain:
            raise ValueError("the title is blank; write what the item is called")
        return plain


class RerankRequest(Body):
    """A second stage: who ranks again, by name or by recipe, and how many candidates."""

    artifact: str | None = Field(
        default=None, description="Name of a loaded artifact that scores candidates, the retrieving one or another."
    )
    recipe: str | None = Field(
        default=None, min_length=1, max_length=MAX_ID, description="A recipe of which such an artifact is loaded."
    )
    candidates: int = Field(
        default=50, ge=1, le=MAX_CANDIDATES, description="Items that are retrieved and ranked again, at least `k`."
    )

    @model_validator(mode="after")
    def _names_one(self) -> RerankRequest:
        if self.artifact is None and self.recipe is None:
            raise ValueError("name an artifact or a recipe that ranks")
        return self


class DiversityRequest(Body):
    """Diversification of an answer: maximal marginal relevance, and a limit of items per category."""

    mmr: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Weight of being unlike the items chosen before (maximal marginal relevance); 0 keeps the order.",
    )
    per_category: int | None = Field(
        default=None, ge=1, le=MAX_K, description="The most items of one category; null: no limit."
    )
    candidates: int | None = Field(
        default=None,
        ge=1,
        le=MAX_CANDIDATES,
        description="Retrieved items that are chosen from, at least `k`; null: four times `k`, and 100 or more. With "
        "`rerank`, its candidates are.",
    )

    def wanted(self, k: int) -> Diversity:
        """Return what the stages are asked for k items."""
        usual = min(MAX_CANDIDATES, max(DIVERSE_LEAST, DIVERSE_FACTOR * k))
        return Diversity(self.mmr, self.per_category, usual if self.candidates is None else self.candidates)


class RecommendRequest(Body):
    """Request for recommendations: history or user, number of items, and exclusions."""

    history: Annotated[list[str | FreeTitle], FailFast()] = Field(
        default_factory=list,
        max_length=MAX_HISTORY,
        description='Items the user took, oldest first: ids of the catalog, or {"title": …} for free text. '
        "Ids that are not in the catalog are ignored and listed in `ignored_items`.",
    )
    user_id: UserId | None = Field(
        default=None,
        description="A user whose stored history is read; where `history` is given too, it comes after the stored one.",
    )
    k: int = Field(
        default=10, ge=1, le=MAX_K, description="How many items; fewer come back only if fewer are eligible."
    )
    exclude_seen: bool = Field(
        default=True, description="Leave out the items of the history, and those whose title it holds."
    )
    exclude: Annotated[list[str], FailFast()] = Field(
        default_factory=list, max_length=MAX_EXCLUDE, description="More item ids to leave out; unknown ones do nothing."
    )
    categories: Annotated[list[str], FailFast()] = Field(
        default_factory=list, max_length=MAX_CATEGORIES, description="Only items in at least one of these categories."
    )
    filter: FilterField | None = Field(default=None, description=FILTER)
    artifact: str | None = Field(default=None, description="Name of a loaded artifact; null takes the default one.")
    fields: FieldNames = Field(default_factory=list, max_length=MAX_FIELDS, description=FIELDS)
    rerank: RerankRequest | None = Field(
        default=None,
        description="A second stage: which ranker orders the retrieved candidates, and how many they are.",
    )
    explain: bool = Field(
        default=False,
        description=f"Say why each item is in the answer, of at most {MAX_EXPLAINED} (`k`).",
    )
    diversity: DiversityRequest | None = Field(
        default=None, description="Choose among more retrieved items, so that the answer repeats itself less."
    )

    def query(self) -> RecommendQuery:
        """Return what a recommender is asked."""
        return RecommendQuery(
            plain_history(self.history), self.user_id, self.k, self.exclude_seen, self.exclude, self.categories,
            None if self.filter is None else self.filter.plain(),
        )  # fmt: skip

    example: ClassVar[dict[str, Any]] = {
        "history": ["d-004", "d-211", "d-017"],
        "k": 3,
        "exclude": ["d-030"],
        "categories": ["mystery"],
        "filter": FilterBody.example,
        "explain": True,
        "fields": ["categories"],
    }


def plain_history(history: Sequence[str | FreeTitle]) -> Sequence[str | TitledItem]:
    """Return a history without the types of a body."""
    if FreeTitle not in set(map(type, history)):
        return cast("Sequence[str]", history)
    return [TitledItem(item.title) if isinstance(item, FreeTitle) else item for item in history]


class RankedItem(Answer):
    """One recommended item; `score` is the inner product (with source "popular": the popularity count)."""

    rank: int
    item_id: str
    title: str
    score: float
    categories: list[str] | None = Field(default=None, description=CATEGORIES_ASKED)
    attributes: AnsweredAttributes | None = Field(default=None, description=ATTRIBUTES_ASKED)


class ArtifactName(Answer):
    """Which artifact answered."""

    name: str
    version: str
    recipe: str


class RerankedBy(Answer):
    """The second stage: who ranked, and how many candidates were retrieved."""

    artifact: ArtifactName
    candidates: int


class ExplainedItem(Answer):
    """An item of the history as the model reads it; a free title has no id."""

    item_id: str | None
    title: str


class Influence(Answer):
    """Contribution of each item of the history to the score of each recommended item: the score minus that without it.

    One list for each recommended item, a number for each item of the history; null for a history of one item.
    """

    method: Literal["leave_one_out"]
    values: list[list[float]] | None


class NearestItem(Answer):
    """The item of the history, by its place in the explanation's `history`, whose vector is most like that of a
    recommended item."""

    place: int
    cosine: float


class Nearest(Answer):
    """One for each recommended item; null where no item of the history has a vector."""

    method: Literal["item_vector_cosine"]
    values: list[NearestItem | None]


class SentenceAnswer(Answer):
    """One English sentence about the first recommended item, by a language model of a loaded artifact.

    Decoding is constrained: the model chooses among sentences that name this item and items of the history, so that no
    other title can appear. It is a plausible text and is not computed from the score.
    """

    method: Literal["constrained_decoding"]
    artifact: ArtifactName | None = Field(description="Whose model was asked; null where none can write a sentence.")
    item_id: str | None = Field(description="The item that it is about; null without a sentence.")
    text: str | None
    named: list[int] = Field(description="Places in the explanation's `history` of the items that it names.")
    reason: Reason | None = Field(
        description="Why there is no sentence. `no_language_model`: no artifact with a language model that has a head "
        "over words is loaded. `nothing_to_name`: the history has no title but that of the item. `no_time`, `busy`, "
        "`failed`: the model was asked in vain, and `degraded` contains `sentence`. `withdrawn`: the item was "
        "withdrawn meanwhile."
    )


class ExplanationAnswer(Answer):
    """Why items are in the answer, by the artifact that retrieved them; lists are in the order of `items`."""

    artifact: ArtifactName
    history: list[ExplainedItem]
    influence: Influence
    nearest: Nearest
    sentence: SentenceAnswer | None = Field(description="About the first item; null only if no item is left.")


class RankedAnswer(Answer):
    """Fields of every answer with a ranked list; ``items`` are the subclass's."""

    request_id: str
    artifact: ArtifactName
    timings_ms: dict[str, float]
    source: Literal["model", "cache", "popular"]
    ignored_items: list[str]
    degraded: list[str]


class RecommendAnswer(RankedAnswer):
    """Recommended items, best first, and how they were computed."""

    items: list[RankedItem]
    rerank: RerankedBy | None = Field(
        default=None, description="Only where the items were ranked again: who did, and how many candidates there were."
    )
    explanation: ExplanationAnswer | None = Field(
        default=None, description="Only where it was asked for: why the items are in the answer."
    )

    example: ClassVar[dict[str, Any]] = {
        "request_id": REQUEST_ID,
        "items": [
            {
                "rank": 1,
                "item_id": "d-018",
                "title": "The Lighthouse at Cape Wrath",
                "score": 0.8125,
                "categories": ["mystery"],
            },
            {
                "rank": 2,
                "item_id": "d-240",
                "title": "Fog over the Harbour",
                "score": 0.7734,
                "categories": ["mystery"],
            },
        ],
        "artifact": {"name": "anyo-demo-tiny", "version": "3f9a2c51d0be", "recipe": "anyo"},
        "timings_ms": {"assemble": 0.08, "queue": 0.21, "search": 0.35, "forward": 6.4, "total": 7.3},
        "source": "model",
        "ignored_items": [],
        "degraded": [],
        "explanation": {
            "artifact": {"name": "anyo-demo-tiny", "version": "3f9a2c51d0be", "recipe": "anyo"},
            "history": [
                {"item_id": "d-004", "title": "The Drowned Bell"},
                {"item_id": "d-211", "title": "Letters from the Pier"},
            ],
            "influence": {"method": "leave_one_out", "values": [[0.0312, 0.418], [0.1207, 0.0544]]},
            "nearest": {
                "method": "item_vector_cosine",
                "values": [{"place": 1, "cosine": 0.83}, {"place": 0, "cosine": 0.61}],
            },
            "sentence": {
                "method": "constrained_decoding",
                "artifact": {"name": "tallrec-demo", "version": "9b1e77c02f4d", "recipe": "tallrec"},
                "item_id": "d-018",
                "text": "“The Lighthouse at Cape Wrath” goes well with “Letters from the Pier”, which you chose.",
                "named": [1],
                "reason": None,
            },
        },
    }
