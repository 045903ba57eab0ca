"""Input embeddings of the tokens in a beam search: a hook for models whose inputs are more than token embeddings.

Shape legend: B rows, T tokens, W beams, H width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import Tensor, nn


class TokenInputs:
    """The model's own token embeddings and nothing else.

    A subclass may read a token with a feature, an integer that depends on the tokens before it (the number of a word,
    a segment), or have vectors for ids beyond the vocabulary. Features of a text are the same whether it is read whole
    or token by token.
    """

    def features(self, ids_BT: Tensor, prefix: Sequence[int] = ()) -> Tensor | None:
        """The feature of every token [B, T] of texts that follow a prefix; None: the model has none."""
        return None

    def next_features(self, last_B: Tensor, written_BWT: Tensor) -> Tensor | None:
        """The feature of the newest written token of every beam, [B, W].

        Args:
            last_B: features of the last tokens of the prompts.
            written_BWT: the tokens written since.
        """
        return None

    def vectors(self, embedding: nn.Module, ids_BT: Tensor, features_BT: Tensor | None) -> Tensor:
        """Inputs of the model, [B, T, H].

        Args:
            embedding: of the model's vocabulary.
            ids_BT: the tokens.
            features_BT: as `features` or `next_features` gave them.
        """
        return cast(Tensor, embedding(ids_BT))


class SlotInputs(TokenInputs):
    """Inputs that are no words: with a vocabulary of V, id V + s stands for row s of a table.

    Args:
        table_SH: the vectors.
    """

    def __init__(self, table_SH: Tensor) -> None:
        self.table_SH = table_SH

    def vectors(self, embedding: nn.Module, ids_BT: Tensor, features_BT: Tensor | None) -> Tensor:
        """See `with_slots`."""
        return with_slots(embedding, self.table_SH, ids_BT)


def with_slots(embedding: Any, slots_SH: Tensor, ids_BT: Tensor) -> Tensor:
    """Inputs [B, T, H]: the embedding of every word; for id V + s, where V is the number of words, row s of a table."""
    count = embedding.weight.shape[0]
    inputs_BTH: Tensor = embedding(ids_BT.clamp(max=count - 1))
    rows_BTH = slots_SH[(ids_BT - count).clamp(min=0)].to(inputs_BTH.dtype)
    return inputs_BTH.where((ids_BT < count)[..., None], rows_BTH)
