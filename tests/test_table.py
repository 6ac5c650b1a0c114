"""The table a search ends with: what its numbers are called."""

import pytest
import rows

from nas.table import comparison

SCENARIO = dict(device="cpu", dtype="float32", batch=1, prompt_tokens=8, generated_tokens=1)
WHOLE = dict(prefill_s=2.0, parameters=100, weight_bytes=400)


@pytest.mark.parametrize(
    ("metric", "above", "name"),
    [
        ("kl", ["KL to the parent", "  before healing"], "  predicted (sum of scores)"),
        ("lm_loss", ["throughput, measured", "held-out loss"], "  predicted rise (sum of scores)"),
    ],
)
def test_the_sum_of_scores_stands_under_what_it_foresees(metric: str, above: list[str], name: str) -> None:
    # `nas solve --metric` may ask for another metric than the search did.
    request = {"score": {"metric": "lm_loss" if metric == "kl" else "kl"}}
    search = rows.search(request=request, scenario=SCENARIO, parent_costs={"whole": WHOLE})
    found = comparison(search, rows.trial(score=0.1234, details={"metric": metric}))
    (place,) = [index for index, row in enumerate(found) if row.child == "0.1234"]
    assert [row.what for row in found[place - 2 : place + 1]] == [*above, name]
    assert sum("sum of scores" in row.what for row in found) == 1
