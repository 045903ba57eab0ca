"""The bodies of the API: what is read from a request and what an answer looks like. Unknown fields are
refused.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, FailFast, Field, field_validator

from modeling.artifact.part_names import Part
from modeling.text import plain_text

MAX_HISTORY = 10_000
MAX_EXCLUDE = 10_000
MAX_CATEGORIES = 100
MAX_EVENTS = 500
MAX_K = 1000
MAX_BEAMS = 1024
MAX_NEW_TOKENS = 4096
MAX_ID = 256
MAX_TITLE = 2000
MAX_SPLIT = 16
LATEST_TIMESTAMP = 253_402_300_799.0  # the end of the year 9999

UserId = Annotated[str, Field(min_length=1, max_length=MAX_ID)]


class Body(BaseModel):
    """Base of every request body: JSON's own types (no "5" for 5), no unknown fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _boolean(value: Any) -> Any:
    """Refuse 0, which equals False and is no JSON boolean."""
    if not isinstance(value, bool):
        raise ValueError("must be a boolean")
    return value


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


class RecommendRequest(Body):
    """Whom to recommend for, how many, and what to leave out."""

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
    exclude_seen: bool = Field(default=True, description="Leave out the items of the history.")
    exclude: Annotated[list[str], FailFast()] = Field(
        default_factory=list, max_length=MAX_EXCLUDE, description="More item ids to leave out; unknown ones do nothing."
    )
    categories: Annotated[list[str], FailFast()] = Field(
        default_factory=list, max_length=MAX_CATEGORIES, description="Only items in at least one of these categories."
    )
    artifact: str | None = Field(default=None, description="Name of a loaded artifact; null takes the default one.")
    rerank: None = Field(default=None, description="Not in this version: only null is allowed.")
    explain: Annotated[Literal[False], BeforeValidator(_boolean)] = Field(
        default=False, description="Not in this version: only false is allowed."
    )


class GenerativeRequest(RecommendRequest):
    """Whom to write recommendations for, with which recipe, and how much may be written."""

    artifact: str | None = Field(
        default=None, description="Name of a loaded generative artifact; null takes the default one, or `recipe`'s."
    )
    recipe: str | None = Field(
        default=None, min_length=1, max_length=MAX_ID, description="A generative recipe of which an artifact is loaded."
    )
    beams: int | None = Field(
        default=None,
        ge=1,
        le=MAX_BEAMS,
        description="Texts that are searched side by side; null takes what the artifact was evaluated with.",
    )
    max_new_tokens: int | None = Field(
        default=None,
        ge=1,
        le=MAX_NEW_TOKENS,
        description="Longest text in tokens; null takes what the artifact was evaluated with.",
    )


class CompareRequest(GenerativeRequest):
    """One history for both ways; `artifact` is the dense one."""

    artifact: str | None = Field(default=None, description="Name of a dense artifact; null takes the default one.")
    generative_artifact: str | None = Field(
        default=None, description="Name of a generative artifact; null takes the default one, or `recipe`'s."
    )


class NewEvent(Body):
    """A user took an item."""

    item_id: str = Field(min_length=1, max_length=MAX_ID)
    event_id: str | None = Field(
        default=None,
        min_length=1,
        max_length=MAX_ID,
        description="Any id of your own; sent again, the event is not stored twice.",
    )
    timestamp: float | None = Field(
        default=None,
        ge=0,
        le=LATEST_TIMESTAMP,
        description="Unix seconds, not ahead of the service's clock; null means now. Histories are ordered by it.",
    )


class AppendRequest(Body):
    """Events to append to a user's history; all are stored or none."""

    events: Annotated[list[NewEvent], FailFast()] = Field(min_length=1, max_length=MAX_EVENTS)


class FeedbackRequest(Body):
    """An item of an answer was taken."""

    request_id: str = Field(
        min_length=1, max_length=128, description="The `request_id` of the answer (also its X-Request-ID)."
    )
    item_id: str = Field(min_length=1, max_length=MAX_ID, description="What was taken, whether recommended or not.")


class TrafficRequest(Body):
    """Which artifacts answer requests that name none."""

    weights: dict[str, Annotated[float, Field(ge=0, le=1e9, allow_inf_nan=False)]] = Field(
        default_factory=dict,
        max_length=MAX_SPLIT,
        description="Share of each artifact, in any unit; empty: the default artifact answers all.",
    )
    shadow: str | None = Field(
        default=None, description="An artifact that answers every request again, silently, to be compared."
    )

    @field_validator("weights")
    @classmethod
    def _something_answers(cls, weights: dict[str, float]) -> dict[str, float]:
        if weights and not any(weights.values()):
            raise ValueError("all weights are 0, so nothing would answer; give one a weight above 0")
        return weights


class Answer(BaseModel):
    """Base of every answer; only documentation, since answers are written as bytes directly."""

    model_config = ConfigDict(extra="forbid")


class RankedItem(Answer):
    """One recommended item; `score` is the inner product (with source "popular": the popularity count)."""

    rank: int
    item_id: str
    title: str
    score: float


class ArtifactName(Answer):
    """Which artifact answered."""

    name: str
    version: str
    recipe: str


class RecommendAnswer(Answer):
    """Recommended items, best first, and how the answer came about."""

    request_id: str
    items: list[RankedItem]
    artifact: ArtifactName
    timings_ms: dict[str, float]
    source: Literal["model", "cache", "popular"]
    ignored_items: list[str]
    degraded: list[str]


class GeneratedText(Answer):
    """A text that was written, best first, and the item that it stands for.

    `code` is the path of a semantic ID, `distance` how far the grounding had to go (0: named as written), `valid`
    whether the text as written is an item.
    """

    text: str
    code: list[int] | None
    item_id: str | None
    distance: float | None
    valid: bool


class TokenCounts(Answer):
    """Positions read and tokens written, those of all beams together."""

    prompt: int
    new: int


class GenerativeAnswer(Answer):
    """Recommended items, best first, and what was written; the last `filled` items were not reached by any text."""

    request_id: str
    items: list[RankedItem]
    artifact: ArtifactName
    timings_ms: dict[str, float]
    source: Literal["model", "popular"]
    ignored_items: list[str]
    degraded: list[str]
    generated: list[GeneratedText]
    tokens: TokenCounts
    beams: int
    filled: int


class CompareAnswer(Answer):
    """Both answers to one history, computed one after the other, without caches.

    `ratio` is the generative total over the dense one, `overlap` the share of items that both hold.
    """

    request_id: str
    dense: RecommendAnswer
    generative: GenerativeAnswer
    ratio: float | None
    overlap: float


class Item(Answer):
    """An item of the catalog."""

    item_id: str
    title: str
    categories: list[str]
    popularity: int


class ItemList(Answer):
    """A page of items; `next` is the offset of the next page, or null."""

    items: list[Item]
    next: int | None


class StoredEvent(Answer):
    """An event of a user; `title` is null where the item is not in the catalog."""

    item_id: str
    title: str | None
    timestamp: float
    event_id: str | None


class UserAnswer(Answer):
    """What is stored of a user, oldest first."""

    user_id: str
    events: list[StoredEvent]


class AppendAnswer(Answer):
    """What an append did: each event is counted in `stored` (a read shows it), `duplicates` or `too_old`. Items that
    are not in the catalog are stored too, and listed in `unknown_items`."""

    user_id: str
    stored: int
    duplicates: int
    too_old: int = Field(description="Events that were older than all that is kept of the user, and are not kept.")
    total: int
    unknown_items: list[str]


class ForgetAnswer(Answer):
    """How many events were deleted."""

    user_id: str
    deleted: int


class UserRow(Answer):
    """A user in the list."""

    user_id: str
    events: int
    last_event_at: float


class UserList(Answer):
    """A page of users, the most recently active first."""

    items: list[UserRow]
    next: str | None = Field(description="What `after` of the next page is; null at the end.")


class SharedPart(Answer):
    """Parts of one kind that an artifact has in common with others, which hold them in memory too."""

    part: Part
    bytes: int
    artifacts: list[str]


class WritingSettings(Answer):
    """Beams and the longest text in tokens."""

    beams: int
    max_new_tokens: int


class WritingRange(Answer):
    """How a generative artifact writes where nothing is asked for, and the most that may be asked for."""

    default: WritingSettings
    limit: WritingSettings


class ArtifactRow(Answer):
    """A loaded artifact, what it can do, what it takes, and histories to try it with.

    `kind` says which endpoint it answers; there is a default artifact of each kind. `own_bytes` is what unloading it
    would give back. `dim` is null and `writes` set for a generative one.
    """

    name: str
    version: str
    recipe: str
    kind: Literal["dense", "generative"]
    default: bool
    state: Literal["active", "standby"]
    bytes: int
    own_bytes: int
    shares: list[SharedPart]
    reads: list[str]
    items: int
    dim: int | None
    writes: WritingRange | None
    history_limit: int
    categories: list[str]
    examples: list[list[str]]


class Working(Answer):
    """What is being done to which artifact, and for how long."""

    name: str
    step: str
    seconds: float


class ArtifactList(Answer):
    """The loaded artifacts, the default one first; `bytes` counts shared parts once, `bytes_limit` 0 means none."""

    items: list[ArtifactRow]
    next: int | None
    working: Working | None
    bytes: int
    bytes_limit: int


class LoadAnswer(Answer):
    """A load; `changed` is false where this version was loaded already."""

    name: str
    version: str
    changed: bool
    bytes: int


class UnloadAnswer(Answer):
    """An unload; `freed_bytes` is what no other artifact uses."""

    name: str
    freed_bytes: int
    bytes: int


class ActivateAnswer(Answer):
    """Which artifact is the default one of its kind from now on, and which was (null: none)."""

    name: str
    version: str
    previous: str | None


class ShadowState(Answer):
    """How the shadow compares with what was served: means over what was compared (null: nothing yet)."""

    artifact: str
    compared: int
    dropped: int
    failed: int
    overlap: float | None
    served_ms: float | None
    shadow_ms: float | None


class TrafficAnswer(Answer):
    """Which artifact answers requests that name none: by weight or, without weights, the default one."""

    default: str
    weights: dict[str, float]
    shadow: ShadowState | None


class FeedbackAnswer(Answer):
    """A report joined with its answer; `rank` is null where the item was not recommended."""

    request_id: str
    item_id: str
    artifact: ArtifactName
    hit: bool
    rank: int | None
    duplicate: bool


class Rate(Answer):
    """A rate or a difference of rates, with the bounds of its 95 % interval."""

    value: float
    low: float
    high: float


class Differences(Answer):
    """Rates of a version minus those of the baseline."""

    hit_rate: Rate | None
    taken_rate: Rate | None


class FeedbackRow(Answer):
    """One version of an artifact: `hit_rate` is hits / rated, `taken_rate` hits / answers."""

    name: str
    version: str
    recipe: str
    answers: int
    rated: int
    hits: int
    hit_rate: Rate | None
    taken_rate: Rate | None
    minus_baseline: Differences | None


class Version(Answer):
    """A version of an artifact."""

    name: str
    version: str


class FeedbackSummary(Answer):
    """All versions that answered, and how they differ from the baseline."""

    baseline: Version | None
    items: list[FeedbackRow]
    next: int | None


class Status(Answer):
    """A probe's answer."""

    status: str


class ErrorDetail(Answer):
    """`code` is stable and meant for programs; `message` says what was given and what is allowed."""

    code: str
    message: str
    request_id: str
    field: str | None = None


class ErrorAnswer(Answer):
    """The one shape of every error."""

    error: ErrorDetail
