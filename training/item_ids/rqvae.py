"""The residual quantiser of TIGER: an autoencoder whose middle is a sum of codes, one per level (RQ-VAE).

Rajput et al. 2023, section 3.1; Lee et al. 2022. Codebooks collapse easily (a few codes take every item, and the rest
are never trained), so: they start at k-means of what the encoder gives (level by level), and after every pass over
the catalog a code that no item has moves to a residual that is far from its own code.

Shape legend: N items, C vector width, D quantised width, L levels, K codes a level.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from training.item_ids.residual_kmeans import residual_kmeans
from training.recipe import CodesSpec, RecipeError

HIDDEN = (512, 256, 128)
BATCH = 1024
RATE, DECAY = 1e-3, 1e-4
REVIVE_UNTIL = 0.8
"""Share of the epochs in which unused codes are moved; afterwards the codebooks settle."""


class ResidualQuantiser(nn.Module):
    """Encoder, codebooks [L, K, D] and decoder."""

    def __init__(self, width: int, spec: CodesSpec) -> None:
        super().__init__()
        self.spec = spec
        self.encoder = _mlp(width, *HIDDEN, spec.dim)
        self.decoder = _mlp(spec.dim, *reversed(HIDDEN), width)
        self.codebooks_LKD = nn.Parameter(torch.zeros(spec.levels, spec.size, spec.dim))

    def quantise(self, latent_ND: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Codes [N, L], the sum of their vectors [N, D] with the gradient passed straight on to ``latent_ND``, and the
        summed codebook and commitment loss."""
        residual_ND = latent_ND
        codes, loss = [], latent_ND.new_zeros(())
        for codebook_KD in self.codebooks_LKD:
            nearest_N = torch.cdist(residual_ND.detach(), codebook_KD.detach()).argmin(-1)
            chosen_ND = codebook_KD[nearest_N]
            loss = loss + F.mse_loss(chosen_ND, residual_ND.detach(), reduction="sum")
            loss = loss + self.spec.commitment * F.mse_loss(residual_ND, chosen_ND.detach(), reduction="sum")
            residual_ND = residual_ND - chosen_ND.detach()
            codes.append(nearest_N)
        total_ND = latent_ND - residual_ND
        return torch.stack(codes, 1), latent_ND + (total_ND - latent_ND).detach(), loss

    def forward(self, vectors_NC: Tensor) -> Tensor:
        """Mean loss an item: reconstruction, codebooks, commitment."""
        _, quantised_ND, loss = self.quantise(self.encoder(vectors_NC))
        return (F.mse_loss(self.decoder(quantised_ND), vectors_NC, reduction="sum") + loss) / len(vectors_NC)

    @torch.no_grad()
    def start(self, vectors_NC: Tensor, seed: int) -> None:
        """Codebooks at the k-means of what the encoder gives, level by level."""
        latent_ND = self.encoder(vectors_NC).numpy()
        _, centroids_LKD = residual_kmeans(latent_ND, levels=self.spec.levels, size=self.spec.size, seed=seed)
        self.codebooks_LKD.copy_(torch.from_numpy(centroids_LKD))

    @torch.no_grad()
    def revive(self, vectors_NC: Tensor, generator: torch.Generator) -> int:
        """Move codes that no item has to residuals that are badly described, and return how many were moved."""
        residual_ND, moved = self.encoder(vectors_NC), 0
        for codebook_KD in self.codebooks_LKD:
            distance_N, nearest_N = torch.cdist(residual_ND, codebook_KD).min(-1)
            unused_U = (torch.bincount(nearest_N, minlength=len(codebook_KD)) == 0).nonzero()[:, 0]
            if len(unused_U):
                taken_U = torch.multinomial(distance_N.square() + 1e-9, len(unused_U), generator=generator)
                codebook_KD[unused_U] = residual_ND[taken_U]
                nearest_N = torch.cdist(residual_ND, codebook_KD).argmin(-1)
                moved += len(unused_U)
            residual_ND = residual_ND - codebook_KD[nearest_N]
        return moved


def quantise(
    vectors_NC: NDArray[np.float32], spec: CodesSpec, *, seed: int = 0, progress: Callable[[], object] = lambda: None
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Train a quantiser on all items; their codes [N, L] and reconstructed vectors [N, C]. ``progress`` is called after
    each pass over the catalog.

    Raises:
        RecipeError: fewer items than codes of a level.
    """
    if len(vectors_NC) < spec.size:
        raise RecipeError(f"{len(vectors_NC)} items cannot have {spec.size} codes a level; set method.codes.size lower")
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    items_NC = torch.from_numpy(vectors_NC)
    scale = float(items_NC.std())  # unit vectors have elements far below one, which the losses would not feel
    items_NC = items_NC / scale
    model = ResidualQuantiser(items_NC.shape[1], spec)
    model.start(items_NC, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=DECAY)
    for epoch in range(spec.epochs):
        for chosen_B in torch.randperm(len(items_NC), generator=generator).split(BATCH):
            optimizer.zero_grad()
            model(items_NC[chosen_B]).backward()
            optimizer.step()
        if epoch < REVIVE_UNTIL * spec.epochs:
            model.revive(items_NC, generator)
        progress()
    with torch.no_grad():
        codes_NL, quantised_ND, _ = model.quantise(model.encoder(items_NC))
        rebuilt_NC: NDArray[np.float32] = (model.decoder(quantised_ND) * scale).numpy()
    return codes_NL.numpy().astype(np.int64), rebuilt_NC


def _mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
