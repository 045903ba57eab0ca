"""The bodies of the API: one file a group of routes, examples beside the bodies."""

from __future__ import annotations

from service.http.schemas.artifacts import (
    ActivateAnswer,
    ArtifactList,
    ArtifactRow,
    LoadAnswer,
    ShadowState,
    SharedPart,
    TrafficAnswer,
    TrafficRequest,
    UnloadAnswer,
    Working,
    WritingRange,
    WritingSettings,
)
from service.http.schemas.base import Answer, Body
from service.http.schemas.errors import ErrorAnswer, ErrorDetail
from service.http.schemas.feedback import (
    Differences,
    FeedbackAnswer,
    FeedbackRequest,
    FeedbackRow,
    FeedbackSummary,
    Rate,
    Version,
)
from service.http.schemas.generative import (
    CompareAnswer,
    CompareRequest,
    GeneratedText,
    GenerativeAnswer,
    GenerativeRequest,
    TokenCounts,
)
from service.http.schemas.items import Item, ItemList
from service.http.schemas.operations import Status
from service.http.schemas.recommend import ArtifactName, FreeTitle, RankedItem, RecommendAnswer, RecommendRequest
from service.http.schemas.users import (
    AppendAnswer,
    AppendRequest,
    ForgetAnswer,
    NewEvent,
    StoredEvent,
    UserAnswer,
    UserList,
    UserRow,
)

__all__ = [
    "ActivateAnswer",
    "Answer",
    "AppendAnswer",
    "AppendRequest",
    "ArtifactList",
    "ArtifactName",
    "ArtifactRow",
    "Body",
    "CompareAnswer",
    "CompareRequest",
    "Differences",
    "ErrorAnswer",
    "ErrorDetail",
    "FeedbackAnswer",
    "FeedbackRequest",
    "FeedbackRow",
    "FeedbackSummary",
    "ForgetAnswer",
    "FreeTitle",
    "GeneratedText",
    "GenerativeAnswer",
    "GenerativeRequest",
    "Item",
    "ItemList",
    "LoadAnswer",
    "NewEvent",
    "RankedItem",
    "Rate",
    "RecommendAnswer",
    "RecommendRequest",
    "ShadowState",
    "SharedPart",
    "Status",
    "StoredEvent",
    "TokenCounts",
    "TrafficAnswer",
    "TrafficRequest",
    "UnloadAnswer",
    "UserAnswer",
    "UserList",
    "UserRow",
    "Version",
    "Working",
    "WritingRange",
    "WritingSettings",
]
