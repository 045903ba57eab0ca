"""The demo data set: an invented catalog of stories and invented readers, made from a seed and nothing else.

What there is to learn, and by whom:

- *Two items at once.* Readers alternate between genres, so the next story mostly has the genre of the one before
  last, while its mood follows from the mood of the last one, along a cycle (after something dark, something
  funny). Who looks at the last item only misses the genre, who looks for likeness misses the mood.
- *Series.* Volume 2 follows volume 1, more surely for a reader who has just read two volumes of it.
- *Titles* tell genre, mood, series and volume in words that related stories share: a model that reads can place
  a story it has hardly seen.
- *Publishers* stand in no title, and each reader has favourites: only who reads what can tell a model about
  those.
- *Noise.* Readers wander off, after their taste in genres and what is popular.

Only `random.Random.random` is drawn from, whose sequence Python guarantees for a seed, so the files are the
same everywhere.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from training.data.fetched.demo_words import BLAME, GENRES, MOODS, PRAISE, PUBLISHERS

GENERATOR = 1  # goes up whenever the same seed gives other files
SEED = 20
USERS = 4000

SINGLES_PER_CELL = 17
SERIES_PER_CELL = 2
VOLUMES = 4
SHORTEST, LONGEST = 6, 25

FOLLOW_GENRE = 0.85
FOLLOW_MOOD = 0.9
WANDER = 0.08
NEXT_VOLUME = {False: 0.35, True: 0.65}  # True: the story before last was of the same series
FAVOURITE_PUBLISHERS = 3
FAVOURITE_WEIGHT = 10.0
FAVOURITE_GENRES = 3
OUT_OF_TURN = 0.02  # what is left of the liking for a volume whose predecessor was not read

_T = TypeVar("_T")


@dataclass(frozen=True)
class Story:
    """One item; `volume` is 0 for a story of no series, `weight` how popular it is among its like."""

    item_id: str
    title: str
    genre: int
    mood: int
    publisher: int
    series: str
    volume: int
    weight: float


class Library:
    """The catalog as readers find their way in it: by genre and mood, and along a series."""

    def __init__(self, stories: Sequence[Story]) -> None:
        """Sort the stories by genre and mood, and by series and volume."""
        self.stories = tuple(stories)
        self.cells: dict[tuple[int, int], list[Story]] = {}
        self.volumes = {(story.series, story.volume): story for story in stories if story.volume}
        self.volume_before: dict[str, str] = {}  # by item id; the first volume and single stories have none
        for story in stories:
            self.cells.setdefault((story.genre, story.mood), []).append(story)
            if story.volume > 1:
                self.volume_before[story.item_id] = self.volumes[story.series, story.volume - 1].item_id


@dataclass
class Reader:
    """A user while a sequence is made; what they read, oldest first."""

    publishers: set[int]
    genres: list[int]
    read: list[Story] = field(default_factory=list)
    read_ids: set[str] = field(default_factory=set)


class Dice:
    """Draws from `random.Random(seed).random()` alone (see the module's text)."""

    def __init__(self, seed: int) -> None:
        """Start the sequence of `seed`."""
        self._random = random.Random(seed)

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self._random.random() < probability

    def between(self, low: float, high: float) -> float:
        """A number drawn evenly from [low, high)."""
        return low + (high - low) * self._random.random()

    def one_of(self, choices: Sequence[_T]) -> _T:
        """One of the choices, evenly."""
        return choices[int(self._random.random() * len(choices))]

    def some_of(self, choices: Sequence[_T], count: int) -> list[_T]:
        """`count` different choices in random order."""
        keyed = sorted((self._random.random(), at) for at in range(len(choices)))
        return [choices[at] for _, at in keyed[:count]]

    def weighted(self, weights: Sequence[float]) -> int:
        """A position, each as likely as its weight is large."""
        left = self._random.random() * sum(weights)
        for at, weight in enumerate(weights):
            left -= weight
            if left < 0:
                return at
        return max(at for at, weight in enumerate(weights) if weight > 0)  # rounding


def write_demo(folder: Path, seed: int = SEED, users: int = USERS) -> None:
    """Write `items.jsonl` and `interactions.csv.gz` of the demo into `folder`."""
    dice = Dice(seed)
    library = Library(make_catalog(dice))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "items.jsonl").open("w", encoding="utf-8", newline="\n") as file:
        for story in dice.some_of(library.stories, len(library.stories)):
            file.write(json.dumps(_record(story)) + "\n")
    lines = ["user_id,item_id,timestamp,rating,review"]
    for user in range(users):
        lines.extend(f"u{user + 1:04d},{line}" for line in _reading(library, dice))
    content = "\n".join(lines).encode() + b"\n"
    (folder / "interactions.csv.gz").write_bytes(gzip.compress(content, mtime=0))


def make_catalog(dice: Dice) -> list[Story]:
    """All stories: per genre and mood a few series and many single ones, no title twice, ids in random order."""
    drafts: list[tuple[str, int, int, int, str, int, float]] = []
    for genre, nouns in enumerate(GENRES.values()):
        for mood, adjectives in enumerate(MOODS.values()):
            pairs = [f"{adjective} {noun}" for adjective in adjectives.split() for noun in nouns.split()]
            names = dice.some_of(pairs, SINGLES_PER_CELL + SERIES_PER_CELL)
            series = set(dice.some_of(range(len(names)), SERIES_PER_CELL))
            for place, name in enumerate(names):
                publisher = int(dice.between(0, len(PUBLISHERS)))
                weight = (place + 3) ** -0.7
                if place not in series:
                    drafts.append((f"The {name}", genre, mood, publisher, "", 0, weight))
                    continue
                for volume in range(1, VOLUMES + 1):
                    drafts.append((f"{name} {volume}", genre, mood, publisher, name, volume, weight))
    numbers = dice.some_of(range(1000, 1000 + 5 * len(drafts)), len(drafts))
    return [Story(f"s{number}", *draft) for number, draft in zip(numbers, drafts, strict=True)]


def make_reader(library: Library, dice: Dice, length: int) -> Reader:
    """A new reader who has read `length` stories, none twice."""
    reader = Reader(
        publishers=set(dice.some_of(range(len(PUBLISHERS)), FAVOURITE_PUBLISHERS)),
        genres=dice.some_of(range(len(GENRES)), FAVOURITE_GENRES),
    )
    while len(reader.read) < length:
        story = _next_volume(reader, library, dice) or _from_cell(reader, library, dice)
        reader.read.append(story)
        reader.read_ids.add(story.item_id)
    return reader


def _next_volume(reader: Reader, library: Library, dice: Dice) -> Story | None:
    if not reader.read or not reader.read[-1].volume:
        return None
    last = reader.read[-1]
    hooked = len(reader.read) > 1 and reader.read[-2].series == last.series
    if not dice.chance(NEXT_VOLUME[hooked]):
        return None
    following = library.volumes.get((last.series, last.volume + 1))
    return None if following is None or following.item_id in reader.read_ids else following


def _from_cell(reader: Reader, library: Library, dice: Dice) -> Story:
    """A story of the genre and mood that come next, after the reader's publishers and what is popular."""
    genre = reader.genres[dice.weighted((0.5, 0.3, 0.2))]
    mood = int(dice.between(0, len(MOODS)))
    if len(reader.read) > 1 and not dice.chance(WANDER):
        if dice.chance(FOLLOW_GENRE):
            genre = reader.read[-2].genre
        if dice.chance(FOLLOW_MOOD):
            mood = (reader.read[-1].mood + 1) % len(MOODS)
    read, publishers, before = reader.read_ids, reader.publishers, library.volume_before
    choices = library.cells[genre, mood]
    likings = [
        0.0
        if story.item_id in read
        else story.weight
        * (FAVOURITE_WEIGHT if story.publisher in publishers else 1.0)
        * (OUT_OF_TURN if story.volume > 1 and before[story.item_id] not in read else 1.0)
        for story in choices
    ]
    return choices[dice.weighted(likings)]


def _reading(library: Library, dice: Dice) -> Iterator[str]:
    """Csv lines of one new reader without the user id: item, seconds since 1970, rating, review."""
    length = SHORTEST + int((LONGEST - SHORTEST + 1) * dice.between(0, 1) ** 1.5)
    reader = make_reader(library, dice, length)
    when = 1_600_000_000 + int(dice.between(0, 2 * 365 * 86_400))
    for story in reader.read:
        when += 3600 + int(dice.between(0, 6 * 86_400))
        liked = story.publisher in reader.publishers
        rating = min(5, max(1, round(dice.between(2.5, 4.5) + (1.0 if liked else 0.0))))
        mood = list(MOODS)[story.mood]
        yield f"{story.item_id},{when},{rating},{mood} tale: {dice.one_of(PRAISE if rating > 3 else BLAME)}"


def _record(story: Story) -> dict[str, object]:
    genre, mood = list(GENRES)[story.genre], list(MOODS)[story.mood]
    record: dict[str, object] = {
        "item_id": story.item_id,
        "title": story.title,
        "categories": [genre],
        "brand": PUBLISHERS[story.publisher],
        "description": f"A {mood} {genre.lower()} story from {PUBLISHERS[story.publisher]}.",
    }
    if story.series:
        record |= {"series": story.series, "volume": story.volume}
    return record
