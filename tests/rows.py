"""Rows to write into a database: each whole, any column of it overridden."""

from typing import Any

from db.models import CostRow, DistillationRow, ScoreRow, SearchRow, StageRow, TrialRow, now
from db.tuning import TuneTrialRow


def search(id: str = "5ea5c4", **columns: Any) -> SearchRow:
    given = dict(
        name="llama-60", parent="/models/llama", parent_digest="d1", score_text="t1", parent_architecture="kv8+ffn512"
    )
    return SearchRow(id=id, **given | dict(request={"budget": "60%"}, scenario={"batch": 8}, hardware="H100") | columns)


def score(key: str = "s1", **columns: Any) -> ScoreRow:
    given = dict(choice="L3.ffn=ffn256", kl=0.25, lm_loss=2.5, top1_agreement=0.75, hidden_cosine=0.9)
    return ScoreRow(key=key, **given | columns)


def cost(key: str = "c1", **columns: Any) -> CostRow:
    given = dict(name="ffn ffn256", prefill_s=1e-3, decode_s=1e-4, spread=0.02, parameters=7 * 10**10)
    given |= dict(active_parameters=7 * 10**10, weight_bytes=14 * 10**10)
    given |= dict(prefill_bytes=0, decode_bytes=0, cache_bytes=0)
    return CostRow(key=key, **given | columns)


def distillation(key: str = "b1", **columns: Any) -> DistillationRow:
    given = dict(choice="L3.ffn=ffn256", tokens=10**9, seconds=60.0, loss_first_weights=0.5, curve=[[0.0, 0.5]])
    return DistillationRow(key=key, **given | columns)


def trial(key: str = "t1", **columns: Any) -> TrialRow:
    given = dict(search_id="5ea5c4", solver="mip", architecture="kv8+ffn256", budget={"latency": 0.6}, score=0.1)
    given |= dict(status="optimal", predicted_latency_s=1.0, predicted_ttft_s=0.1, predicted_decode_s=0.01)
    given |= dict(predicted_throughput=900.0, predicted_memory_bytes=24 * 2**30, predicted_parameters=10**9)
    return TrialRow(key=key, **given | {"child_key": f"child of {key}"} | columns)


def stage(**columns: Any) -> StageRow:
    return StageRow(**dict(search_id="5ea5c4", name="score", started_at=now(), seconds=1.5, work_done=12) | columns)


def tune_trial(number: int, rate: float, objective: float | None, **columns: Any) -> TuneTrialRow:
    given = dict(study="s1", parent_digest="d1", tokens=4096, batch=8, schedule="cosine", warmup=0.05, weight_decay=0.0)
    given |= dict(lora_rank=None, layers=[0], choices=["L0.ffn=ffn8"], state="complete", points=[], seconds=1.0)
    given |= dict(number=number, learning_rate=rate, objective=objective) | columns
    return TuneTrialRow(**{"key": f"{given['study']} {number}"} | given)
