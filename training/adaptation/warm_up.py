"""The stage that trains items and the weights of the newest ones before the network takes part.

A pass without the network costs a small part of one with it. What the newest items alone say is most of the accuracy
on small data, and takes more passes to learn than a language model can make in the same time. So items are trained
without the network first; then the projector's map starts from zero (as in Fixup, Zhang et al. 2019, and as LoRA's
second matrix does), and the network learns what differs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from transformers import set_seed

from training.data.splits import Split
from training.loop.fit import FitOptions
from training.loop.module import RetrievalModule
from training.loop.stages import ModuleStage, run_stages
from training.recipe import Recipe

POSITIONS = 1280
"""Of a step at least: without a network, memory does not bound a step."""
SHARE = 0.3
"""Of a run's time budget at most."""


def warm_up(
    recipe: Recipe, split: Split, options: FitOptions, module: RetrievalModule, epochs: int, console: Console
) -> dict[str, dict[str, Any]]:
    """Train items and the weights of the newest ones for ``epochs``, and start the projector's map from zero.

    Returns:
        The record of the stage, by its name.
    """
    module.encoder.projector.start_from_zero()
    wide = recipe.optimizer.model_copy(
        update={"positions": max(POSITIONS, recipe.optimizer.positions), "epochs": epochs}
    )
    stage = _NewestItems(
        name="newest-items",
        objective="items and the weights of the newest ones, without the network",
        module=module,
        recipe=recipe.model_copy(update={"name": f"{recipe.name}, newest items", "optimizer": wide}),
        split=split,
        options=replace(options, epochs=epochs, share=SHARE),
        evaluate_now=dict,
        console=console,
    )
    reports = run_stages([stage], options.work / "stages", console)
    set_seed(options.seed)  # what follows is the same whether the stage has just run or was restored
    return reports


class _NewestItems(ModuleStage):
    """Turns the network off meanwhile."""

    def run(self, work: Path) -> dict[str, Any]:
        """See `ModuleStage.run`."""
        assert isinstance(self.module, RetrievalModule)
        self.module.network = False
        try:
            return super().run(work)
        finally:
            self.module.network = True
