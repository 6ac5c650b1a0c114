"""Parts corrected by whole architectures: planted times come out."""

import random

import pytest

from cost_models.timing.calibration import calibrated
from cost_models.timing.least_squares import Whole

TRUTH = {"fixed": 10.0, "attention": 1.0, "wide": 3.0, "narrow": 1.5}


def wholes(count: int, spread: float = 0.005) -> list[Whole]:
    drawn = random.Random(0)
    found = []
    for _ in range(count):
        wide, narrow = drawn.randrange(12), drawn.randrange(12)
        counts = {"fixed": 1.0, "attention": float(drawn.randrange(12)), "wide": float(wide), "narrow": float(narrow)}
        found.append(Whole(counts, sum(TRUTH[name] * number for name, number in counts.items()), spread))
    return found


def test_parts_that_stacks_see_too_large_are_corrected() -> None:
    seen = TRUTH | {"narrow": 1.7, "attention": 0.95}
    assert calibrated(seen, wholes(24)) == pytest.approx(TRUTH, rel=0.01)


def test_without_wholes_parts_stay_as_they_are() -> None:
    assert calibrated(TRUTH, []) == pytest.approx(TRUTH)


def test_a_part_that_no_whole_holds_stays_and_one_of_nothing_stays_nothing() -> None:
    found = calibrated(TRUTH | {"other": 2.0, "nothing": 0.0}, wholes(8))
    assert found["other"] == pytest.approx(2.0)
    assert found["nothing"] == 0.0


def test_noisy_wholes_move_less_than_sure_ones() -> None:
    seen = TRUTH | {"narrow": 1.8}
    sure, noisy = (calibrated(seen, wholes(6, spread))["narrow"] for spread in (0.001, 0.5))
    assert abs(sure - 1.5) < abs(noisy - 1.5)


def test_a_whole_of_unknown_parts_is_an_error() -> None:
    with pytest.raises(ValueError, match="no amount is known of skip"):
        calibrated(TRUTH, [Whole({"skip": 1.0}, 1.0, 0.01)])
