"""A search whose rows stand in a database, as if all of it had been scored and timed: costs and scores are made up."""

from pathlib import Path

import rows

from blocklib.block import SKIP, Block, Choice, Subblock
from db import models
from db.store import Store
from nas.job.config import load
from nas.job.units import parse_budget
from nas.solve.solve import measured, solve, trial_row

LAYERS = 4
PARENT = " ".join(["kv4+ffn64"] * LAYERS)
CURVE = [[0.0, 0.5], [256.0, 0.25], [512.0, 0.125]]


def choices() -> list[Choice]:
    found = []
    for layer in range(LAYERS):
        found += [
            Choice(layer, "attention", what)
            for what in (Subblock("kv", "4"), Subblock("kv", "2"), Subblock("linear"), SKIP)
        ]
        found += [Choice(layer, "ffn", what) for what in (Subblock("ffn", "64"), Subblock("ffn", "32"), SKIP)]
        found.append(Choice(layer, "block", Block(SKIP, SKIP)))
    found.append(Choice(1, "ffn", Subblock.parse("fuse(ffn64,ffn64)")))
    return found


def seconds(choice: Choice) -> float:
    """The seconds of one prefill. A run takes as long as its FFNs one after the other."""
    subblocks = [part for _, subblock in choice.subblocks for part in subblock.parts or (subblock,)]
    return sum({"kv": 1e-4, "ffn": 1e-5, "linear": 5e-5, "skip": 0}[s.kind] * float(s.size or 1) for s in subblocks)


def kl(choice: Choice) -> float:
    harm = {"kv2": 0.0125, "linear": 0.25, "ffn32": 0.03, "skip": 0.8, "skip+skip": 1.5, "fuse(ffn64,ffn64)": 0.02}
    return harm[str(choice.what)] * (1 + choice.layer)


def joules(prefill_s: float, decode_s: float) -> dict[str, float]:
    """The joules of a device that takes 10 W in a prefill and 20 W in a decode step, exactly."""
    return dict(prefill_j=10 * prefill_s, decode_j=20 * decode_s, prefill_error_j=0.0, decode_error_j=0.0)


def cost(key: str, name: str, prefill_s: float, decode_s: float, **more: float) -> models.CostRow:
    return rows.cost(key, name=name, prefill_s=prefill_s, decode_s=decode_s, parameters=100, weight_bytes=400, **more)


def add_measured(store: Store, search: models.SearchRow, is_metered: bool = False) -> None:
    """Options with their scores, costs and distillations, and the parent's cost. A decode step, where there is one,
    takes a tenth of a prefill. Joules are there where they are asked for."""
    per_prefill = 0.1 if search.scenario["generated_tokens"] > 1 else 0.0
    options = []
    for choice in choices():
        text, is_own = str(choice), str(choice.what) in ("kv4", "ffn64")
        times = seconds(choice), per_prefill * seconds(choice)
        store.add_costs([cost(f"cost {text}", text, *times, **(joules(*times) if is_metered else {}))])
        if not is_own:
            store.add_scores([rows.score(f"score {text}", choice=text, kl=kl(choice), lm_loss=2 * kl(choice))])
        if not is_own and "skip" not in text:
            losses = {"loss_first_weights": 0.5, "loss_least_squares": 0.375, "loss_trained": 0.0625}
            store.add_distillations([rows.distillation(f"bld {text}", choice=text, curve=CURVE, **losses)])
        options.append(
            models.OptionRow(
                search_id=search.id,
                choice=text,
                first_slot=choice.first_slot,
                span=choice.span,
                name=str(choice.what),
                score_key=None if is_own else f"score {text}",
                cost_keys=[f"cost {text}"],
                distillation_key=f"bld {text}",
            )
        )
    store.set_options(search.id, options)
    fixed = dict(prefill_s=1e-3, decode_s=per_prefill * 1e-3, parameters=50, weight_bytes=200)
    own = LAYERS * (4e-4 + 64e-5)
    whole = fixed | dict(
        prefill_s=1e-3 + own, decode_s=per_prefill * (1e-3 + own), parameters=50 + 800, weight_bytes=200 + 3200
    )
    if is_metered:
        fixed, whole = (part | joules(part["prefill_s"], part["decode_s"]) for part in (fixed, whole))
    search.parent_costs = {"fixed": fixed, "whole": whole}
    store.add_search(search)


def add_search(
    store: Store, tmp_path: Path, name: str = "stories-60", budget: str = "60%", generated_tokens: int = 1
) -> models.SearchRow:
    job = tmp_path / "job.yaml"
    job.write_text(f"name: stories-60\nparent: embedded\ndata: {{train: stdlib}}\nbudget: {{latency: {budget}}}\n")
    scenario = dict(device="cpu", dtype="float32", batch=16, prompt_tokens=256, threads=2)
    scenario |= dict(generated_tokens=generated_tokens)
    request = load(job).canonical()
    return store.add_search(
        rows.search(
            name=name, parent_architecture=PARENT, request=request, scenario=scenario, hardware="Some CPU, 2 cores"
        )
    )


def add_trial(store: Store, search: models.SearchRow, budget: str, factor: float | None) -> models.TrialRow:
    """Solved for a budget; built, and measured at `factor` of its prediction, unless that is None."""
    known, limits = measured(store, search), parse_budget(budget)
    trial = store.add_trial(trial_row(known, solve(known, limits), limits, None))
    if factor is None:
        return trial
    latency_s = factor * trial.predicted_latency_s
    whole_s = known.parent_totals()["latency_s"]
    return store.update_trial(
        trial.id,
        latency_s=latency_s,
        latency_ratio=latency_s / whole_s,
        latency_spread=0.0123,
        memory_bytes=trial.predicted_memory_bytes,
        kl_before_heal=1.25 * trial.score,
        kl=0.5 * trial.score,
        lm_loss=2.25,
        perplexity=9.4877,
        heal_curve=CURVE,
        details={"parent": {"lm_loss": 2.0, "latency_s": whole_s}},
    )
