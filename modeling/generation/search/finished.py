"""The texts of a beam search that have ended."""

from __future__ import annotations

from modeling.generation.search.types import BeamSettings, Text


class FinishedTexts:
    """The ended texts of one prompt, at most W, best first."""

    def __init__(self, beams: int, settings: BeamSettings) -> None:
        self._beams, self._settings = beams, settings
        self._texts: list[Text] = []

    @property
    def best(self) -> Text | None:
        return self._texts[0] if self._texts else None

    @property
    def full(self) -> bool:
        return len(self._texts) == self._beams

    def add(self, text: Text) -> None:
        self._texts.append(text)
        self._texts.sort(key=lambda each: -each.score)
        del self._texts[self._beams :]

    def can_improve(self, best_running: float) -> bool:
        """Whether a running beam may still enter: not all places are taken, or the worst taken one is behind it."""
        if not self.full:
            return True
        return not self._settings.early_stopping and best_running > self._texts[-1].score

    def texts(self) -> list[Text]:
        return self._texts
