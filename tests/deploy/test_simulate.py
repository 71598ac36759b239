"""The simulation behind docs/scaling.md."""

import math
import statistics

import pytest

from deploy.simulate import BATCH, POLICIES, Request, quantile, simulate


def single_pages(requests: list[Request]) -> list[float]:
    return [each.ended - each.came for each in requests if each.pages == 1]


@pytest.mark.parametrize("policy", list(POLICIES))
def test_every_request_ends(policy: str) -> None:
    requests = simulate(3, 0.8, POLICIES[policy], pages=3000)
    assert requests
    assert all(not math.isnan(each.ended) and each.ended >= each.came for each in requests)


def test_on_an_idle_replica_a_page_takes_the_time_of_a_single_page() -> None:
    requests = simulate(1, 0.02, POLICIES["random"], pages=4000, seed=1)
    assert statistics.fmean(single_pages(requests)) == pytest.approx(1.0, rel=0.15)


def test_the_load_is_as_requested() -> None:
    requests = simulate(2, 0.5, POLICIES["pages"], pages=40_000)
    seconds = requests[-1].came - requests[0].came
    assert sum(each.pages for each in requests) / seconds == pytest.approx(2 * BATCH * 0.5, rel=0.25)


def test_the_better_of_two_replicas_is_better_than_a_random_one() -> None:
    waits = {
        name: quantile(single_pages(simulate(8, 0.7, policy, pages=16_000)), 0.95) for name, policy in POLICIES.items()
    }
    assert waits["requests"] < 0.8 * waits["random"]
    assert waits["pages"] < waits["requests"]
