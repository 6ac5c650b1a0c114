"""The report's arguments for and against each option."""

import rows

from blocklib.block import Architecture
from cost_models.metrics import LATENCY
from cost_models.scenario import Scenario
from db import models
from db.measured import KnownOption
from nas.report.options import Offer, offers

SCENARIO = Scenario("cpu", "float32", batch=2, prompt_tokens=8, generated_tokens=1)
LAYERS = 2


def option(layer: int, what: str, score: float | None, seconds: float, active: int) -> KnownOption:
    """Half the score in the first layer, so that the mean is the middle."""
    choice = f"L{layer}.ffn={what}"
    kept = models.OptionRow(
        search_id="s", choice=choice, first_slot=2 * layer + 1, span=1, name=what, score_key=score and choice
    )
    kl = None if score is None else score * (layer + 0.5)
    scored = None if kl is None else rows.score(choice, choice=choice, kl=kl, lm_loss=2 * kl)
    held = active if what.startswith(("ffn", "skip")) else 640
    cost = rows.cost(
        what, prefill_s=seconds, decode_s=0.0, parameters=held, active_parameters=active, decode_bytes=4 * active
    )
    return KnownOption(kept, scored, (cost,), None)


def offered(*given: tuple[str, float | None, float, int], child: str = "") -> dict[str, Offer]:
    options = [option(layer, *one) for layer in range(LAYERS) for one in given]
    architecture = Architecture.parse(child) if child else None
    return {one.name: one for one in offers(options, "kl", LATENCY, SCENARIO, architecture)}


OWN = ("ffn64", None, 4.0, 640)


def test_means_over_layers_and_what_was_chosen() -> None:
    found = offered(OWN, ("ffn32", 0.5, 2.0, 320), ("skip", 3.0, 0.0, 0), child="kv2+ffn32 kv2+ffn64")
    assert list(found) == ["ffn64", "ffn32", "skip"]
    assert (found["ffn32"].chosen, found["ffn64"].chosen, found["skip"].chosen) == (1, 1, 0)
    assert (found["ffn32"].score, found["ffn32"].cost) == (0.5, 0.5)
    assert (found["ffn32"].bytes_per_token, found["ffn32"].layers) == (640, LAYERS)
    assert found["ffn32"].why == ""
    assert "not near this budget" in found["skip"].why


def test_a_sparse_option_is_judged_beside_the_dense_one_that_does_as_much() -> None:
    dense = [OWN, ("ffn32", 0.5, 2.0, 320), ("ffn16", 1.0, 1.0, 160)]
    found = offered(*dense, ("dip50", 0.6, 1.5, 321), ("moe4x16k1", 0.9, 0.9, 165), ("dip25", 0.8, 1.2, 161))
    assert found["dip50"].control == "ffn32"
    assert found["dip50"].why == "no closer to the parent than its control ffn32; not recommended"
    assert found["moe4x16k1"].control == "ffn16"
    assert "not near this budget" in found["moe4x16k1"].why
    assert found["dip25"].why == "closer to the parent than its control ffn16, but costs more here"
    assert found["ffn16"].why == "moe4x16k1 is closer to the parent and costs no more"


def test_what_is_not_measured_is_left_out() -> None:
    options = [option(0, *OWN), option(0, "ffn32", 0.5, 2.0, 320)]
    unscored = KnownOption(options[1].option, None, options[1].costs, None)
    unmeasured = KnownOption(options[1].option, options[1].score, None, None)
    for missing in (unscored, unmeasured):
        found = offers([options[0], missing], "kl", LATENCY, SCENARIO, None)
        assert [one.name for one in found] == ["ffn64"]
