"""The whole-word embedding of P5 (Geng et al. 2022, section 3.2): the tokens of one word are read as one word.

An identifier is several tokens, and so is a rare word. Beside its own vector, every token is read with the vector of
the number of its word in the text, which is the same for all tokens of the word.

Which word a token belongs to follows from the tokens before it, so training and serving ask the same class, whether
they have a whole text or one more token. P5's published evaluation leaves these vectors out.

Shape legend: B rows, T tokens, V vocabulary, H width.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modeling.generation.token_inputs import TokenInputs

WORDS = 512
"""Words that are told apart, as in P5; the later ones of a longer text count as the last."""


class WholeWordEmbedding(nn.Module):
    """Vectors by the number of the word.

    Args:
        begins_V: which tokens begin a word; any other continues that of the token before it.
        width: H.
    """

    begins_V: Tensor

    def __init__(self, begins_V: Tensor, width: int) -> None:
        super().__init__()
        self.register_buffer("begins_V", begins_V.bool())
        self.table = nn.Embedding(WORDS, width)
        nn.init.normal_(self.table.weight, std=0.02)

    def count(self, ids_BT: Tensor) -> Tensor:
        """Words that begin in each row [B]."""
        return self.begins_V[ids_BT].sum(-1)

    def numbers(self, ids_BT: Tensor, before: int = 0) -> Tensor:
        """The number of every token's word [B, T], from 1 on; ``before`` words stand before every row."""
        return (before + self.begins_V[ids_BT].cumsum(-1)).clamp(max=WORDS - 1)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Embeddings that are added to the tokens' own vectors, [B, T, H]."""
        found: Tensor = self.table(self.numbers(ids_BT))
        return found

    def later(self, words: Tensor, tokens: Tensor) -> Tensor:
        """The number of the last token's word where ``tokens`` [..., T] follow a text of ``words`` words [...]."""
        return (words + self.begins_V[tokens].sum(-1)).clamp(max=WORDS - 1)


class WholeWordInputs(TokenInputs):
    """Token embeddings with the vectors of whole words added; the feature of a token is the number of its word.

    Args:
        words: the vectors.
    """

    def __init__(self, words: WholeWordEmbedding) -> None:
        self.words = words

    def features(self, ids_BT: Tensor, prefix: Sequence[int] = ()) -> Tensor:
        """The number of every token's word, those of the prefix counted."""
        before = int(self.words.count(torch.tensor([tuple(prefix)], dtype=torch.long, device=ids_BT.device)))
        return self.words.numbers(ids_BT, before)

    def next_features(self, last_B: Tensor, written_BWT: Tensor) -> Tensor:
        """The number of the newest token's word."""
        return self.words.later(last_B[:, None], written_BWT)

    def vectors(self, embedding: nn.Module, ids_BT: Tensor, features_BT: Tensor | None) -> Tensor:
        """The two vectors of each token, added."""
        found: Tensor = embedding(ids_BT) + self.words.table(features_BT)
        return found


def read(model: nn.Module, ids_BT: Tensor, words: WholeWordEmbedding | None) -> Tensor:
    """Token embeddings of a model with those of the words added, [B, T, H]."""
    embedded_BTH: Tensor = model.get_input_embeddings()(ids_BT)  # type: ignore[operator]
    return embedded_BTH if words is None else embedded_BTH + words(ids_BT)
