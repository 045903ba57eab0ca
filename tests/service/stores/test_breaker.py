"""The breaker on a virtual clock: when it opens, how it comes back, whose results count."""

from __future__ import annotations

import pytest

from service.redis_client.circuit_breaker import Breaker, BreakerOpen


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(3, 2.0, clock)


def end(breaker: Breaker, *results: bool) -> None:
    for ok in results:
        breaker.record(breaker.enter(), ok)


def test_it_opens_after_failures_in_a_row_only(breaker: Breaker) -> None:
    end(breaker, False, False, True, False, False)
    assert breaker.state == "closed"
    end(breaker, False)
    assert breaker.state == "open"
    with pytest.raises(BreakerOpen) as refusal:
        breaker.enter()
    assert refusal.value.retry_s == 2.0


def test_a_probe_half_opens_it_and_the_next_call_decides(breaker: Breaker, clock: Clock) -> None:
    end(breaker, False, False, False)
    clock.now += 1.5
    assert breaker.probe_in() == 0.5
    clock.now += 0.5
    assert breaker.probe_in() == 0
    breaker.probed(False)
    assert (breaker.state, breaker.probe_in()) == ("open", 2.0)
    breaker.probed(True)
    assert breaker.state == "half_open"
    end(breaker, False)
    assert breaker.state == "open", "one failure is enough after a probe"
    breaker.probed(True)
    end(breaker, True)
    assert breaker.state == "closed"
    end(breaker, False, False)
    assert breaker.state == "closed", "counting began anew"


def test_a_call_counts_only_in_the_state_in_which_it_began(breaker: Breaker) -> None:
    late = [breaker.enter() for _ in range(5)]
    end(breaker, False, False, False)
    for ticket in late:
        breaker.record(ticket, True)
    assert breaker.state == "open", "an answer from before does not close it"
    breaker.probed(True)
    for ticket in late:
        breaker.record(ticket, False)
    assert breaker.state == "half_open", "a time-out from before does not open it again"


def test_a_call_that_was_given_up_says_nothing(breaker: Breaker) -> None:
    for _ in range(10):
        breaker.enter()
    assert breaker.state == "closed"


def test_it_can_be_opened_by_hand(breaker: Breaker) -> None:
    breaker.trip()
    with pytest.raises(BreakerOpen):
        breaker.enter()
