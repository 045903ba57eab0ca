"""The whole-word embedding of P5 (Geng et al. 2022, section 3.2): the tokens of one word are read as one word.

An identifier is several tokens, and so is a rare word. Beside its own vector, every token is read with the vector of
the number of its word in the text, which is the same for all tokens of the word.

Which word a token belongs to follows from the tokens before it, so training and serving ask the same class, whether
they have a whole text or one more token. P5's published evaluation leaves these vectors out.

Shape legend: B rows, T tokens, V vocabulary, H width.
"""

from __future__ import annotations

from torch import Tensor, nn

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
        """What is added to the tokens' own vectors, [B, T, H]."""
        found: Tensor = self.table(self.numbers(ids_BT))
        return found

    def later(self, words: Tensor, tokens: Tensor) -> Tensor:
        """The number of the last token's word where ``tokens`` [..., T] follow a text of ``words`` words [...]."""
        return (words + self.begins_V[tokens].sum(-1)).clamp(max=WORDS - 1)


def read(model: nn.Module, ids_BT: Tensor, words: WholeWordEmbedding | None) -> Tensor:
    """Token embeddings of a model with those of the words added, [B, T, H]."""
    embedded_BTH: Tensor = model.get_input_embeddings()(ids_BT)  # type: ignore[operator]
    return embedded_BTH if words is None else embedded_BTH + words(ids_BT)
