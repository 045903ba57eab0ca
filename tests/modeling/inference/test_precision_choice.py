"""Which precision is taken: by figures of this processor, measured once; slower ones are refused unless forced."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from modeling.encoder.build import Model
from modeling.inference import precision_choice
from modeling.inference.int8_linear import PrecisionError
from modeling.inference.precision_choice import LEAST_ROUNDS, ROUNDS, PrecisionAsked, measure, settle
from service.artifacts.loading import open_artifact
from service.errors import StartError
from testing.artifacts import write_text_artifact
from testing.products import BOTH_INT8, use_products

FAST, SAME, SLOW = 0.5, 1.1, 9.0


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Make every other precision take so many times what fp32 takes."""

    def set_to(times: float) -> None:
        monkeypatch.setattr(
            precision_choice, "measure", lambda device, training, other: {"fp32": 2.0, other: 2.0 * times}
        )

    return set_to


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize(
    ("asked", "times", "taken"),
    [
        ("auto", FAST, "bf16"),
        ("auto", SAME, "fp32"),
        ("auto", 1 / SAME, "fp32"),
        ("auto", SLOW, "fp32"),
        ("bf16", FAST, "bf16"),
        ("bf16", SAME, "bf16"),
        ("int8", FAST, "int8"),
    ],
)
def test_figures_decide(
    asked: PrecisionAsked, times: float, taken: str, training: bool, speed: Callable[[float], None]
) -> None:
    speed(times)
    found = settle(asked, "cpu", training=training)
    assert found.taken == taken and found.milliseconds["fp32"] == 2.0
    assert taken in str(found) and f"asked for: {asked}" in str(found) and "fp32 2.00" in str(found)


@pytest.mark.parametrize("asked", ["bf16", "int8"])
def test_what_is_slower_is_refused_with_its_figures_unless_forced(
    asked: PrecisionAsked, speed: Callable[[float], None]
) -> None:
    speed(SLOW)
    with pytest.raises(
        PrecisionError, match=rf"{asked} is slower .* 18.00 ms in {asked} and 2.00 ms in fp32 on cpu; .*or do so"
    ):
        settle(asked, "cpu", force_with="do so")
    found = settle(asked, "cpu", forced=True)
    assert found.taken == asked and not found.milliseconds
    assert settle("auto", "cpu", forced=True).taken == "fp32", "there is nothing to force"


def test_fp32_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision_choice, "measure", None)
    assert settle("fp32", "cpu").taken == "fp32"


@pytest.mark.parametrize(("training", "other"), [(False, "bf16"), (True, "bf16")])
def test_a_measurement_is_of_both_made_once_and_leaves_random_numbers_alone(
    training: bool, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure.cache_clear()
    before = torch.get_rng_state()
    found = measure("cpu", training, other)
    assert found.keys() == {"fp32", other} and all(0 < spent < 60_000 for spent in found.values())
    assert torch.equal(before, torch.get_rng_state())
    monkeypatch.setattr(precision_choice, "_timed", None)
    assert measure("cpu", training, other) is found


@pytest.mark.parametrize("products", BOTH_INT8)
def test_eight_bits_are_measured_by_what_multiplies_them(products: str, monkeypatch: pytest.MonkeyPatch) -> None:
    use_products(products, monkeypatch)
    measure.cache_clear()
    assert measure("cpu", False, "int8").keys() == {"fp32", "int8"}
    measure.cache_clear()


@pytest.mark.parametrize(("second_a_pass", "rounds"), [(0.0, 1 + ROUNDS), (1.0, 1 + LEAST_ROUNDS)])
def test_a_measurement_ends_on_a_slow_processor(
    second_a_pass: float, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, passes = [0.0], [0]

    def timed(run: Any, kind: str) -> float:
        now[0] += second_a_pass
        passes[0] += 1
        return second_a_pass

    measure.cache_clear()
    monkeypatch.setattr(precision_choice.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(precision_choice, "_timed", timed)
    measure("cpu", False, "bf16")
    measure.cache_clear()
    assert passes[0] == 2 * rounds


def test_an_artifact_is_opened_in_what_was_settled(
    small_model: Callable[..., Model], tmp_path: Path, speed: Callable[[float], None]
) -> None:
    """A language model; a small network of its own is not measured for."""
    titles, own = (
        write_text_artifact(small_model("titles"), tmp_path / "titles"),
        write_text_artifact(small_model("ids"), tmp_path / "own"),
    )
    for times, taken in ((FAST, "bf16"), (SLOW, "fp32")):
        speed(times)
        assert open_artifact(titles, "cpu", "auto").precision == taken
        assert open_artifact(own, "cpu", "auto").precision == "fp32"
    with pytest.raises(StartError, match=r"bf16 is slower than fp32 here: .* ANYO_PRECISION_FORCED=true"):
        open_artifact(titles, "cpu", "bf16")
    assert open_artifact(titles, "cpu", "bf16", precision_forced=True).precision == "bf16"
