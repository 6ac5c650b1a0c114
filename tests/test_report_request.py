"""Answers hold every metric that is asked for, from every command that takes one, for people and as JSON."""

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stored import add_measured, add_search

from cost_models.metrics import METRICS
from db import models
from db.store import Store
from nas.cli import main
from nas.cli import solve as cli_solve
from nas.cli.printed import print_comparison
from nas.compare.strategies import StrategyResult
from nas.job.units import exact_quantity, format_quantity, said_budget
from nas.report import write_report
from nas.solve.caution import cautions
from nas.solve.solve import Measured, measured
from nas.view.table import comparison, markdown

ASKED = {name: "110%" if metric.at_least else "85%" for name, metric in METRICS.items()}

Said = Callable[[], str]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "nas.db")


@pytest.fixture
def known(store: Store, tmp_path: Path) -> Measured:
    search = add_search(store, tmp_path, name="s", generated_tokens=4)
    add_measured(store, search, is_metered=True)
    return measured(store, search)


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Said:
    return lambda: capsys.readouterr().out


def predicted(trial: dict[str, Any] | models.TrialRow, metric: str) -> str:
    name = f"predicted_{METRICS[metric].column}"
    return format_quantity(metric, trial[name] if isinstance(trial, dict) else getattr(trial, name))


def solved(store: Store, metric: str, said: Said, budget: str | None = None) -> dict[str, Any]:
    cli_solve.solve(["s"], budget=[f"{metric}={budget or ASKED[metric]}"], db=store.url, as_json=True)
    trial: dict[str, Any] = json.loads(said())
    return trial


@pytest.mark.parametrize("metric", METRICS)
def test_solve_and_show(store: Store, known: Measured, said: Said, metric: str) -> None:
    trial = solved(store, metric, said)
    assert trial["budget"] == {metric: ASKED[metric]}
    value, whole = trial[f"predicted_{METRICS[metric].column}"], known.parent_totals()[METRICS[metric].column]
    assert value >= 1.1 * whole if metric == "throughput" else value <= 0.85 * whole
    cli_solve.solve(["s"], budget=[f"{metric}={ASKED[metric]}"], db=store.url)
    (row,) = [line for line in said().splitlines() if re.match(rf" {metric}(, predicted)? ", line)]
    assert predicted(trial, metric) in row
    assert format_quantity(metric, whole) in row
    main.show(trial["id"], db=store.url)
    assert row.split() in [line.split() for line in said().splitlines()]
    main.show(trial["id"], db=store.url, as_json=True)
    assert json.loads(said())[f"predicted_{METRICS[metric].column}"] == value


def test_a_layers_memory_is_shown(store: Store, known: Measured, said: Said) -> None:
    main.show(solved(store, "memory", said)["id"], db=store.url, as_json=True)
    shown = json.loads(said())
    layers = sum(layer["memory_bytes"] for layer in shown["layers"])
    assert layers + known.fixed.metrics(known.scenario)["memory_bytes"] == shown["predicted_memory_bytes"]


@pytest.mark.parametrize("metric", METRICS)
def test_trials(store: Store, known: Measured, said: Said, metric: str) -> None:
    trial = solved(store, metric, said)
    main.trials(db=store.url)
    _, row = said().splitlines()
    assert predicted(trial, metric) in row
    assert f"{metric}={ASKED[metric]}" in row
    main.trials(db=store.url, as_json=True)
    (told,) = json.loads(said())
    assert told == {
        name: value for name, value in trial.items() if name not in ("cautions", "plain", "verdict", "verdicts")
    }


@pytest.mark.parametrize("metric", METRICS)
def test_pool(store: Store, known: Measured, said: Said, metric: str) -> None:
    asked = dict(budget=[f"{metric}={ASKED[metric]}"], count=2, db=store.url)
    cli_solve.pool("s", **asked)
    printed = said()
    cli_solve.pool("s", **asked, as_json=True)
    for one in json.loads(said())["found"]:
        row = next(line for line in printed.splitlines() if line.startswith(f" {one['trial']['id']} "))
        assert predicted(one["trial"], metric) in row
    assert metric in printed


@pytest.mark.parametrize("metric", METRICS)
def test_pareto(store: Store, known: Measured, said: Said, metric: str, tmp_path: Path) -> None:
    asked = dict(cost=metric, points=6, db=store.url, plot=tmp_path / "front.svg")
    cli_solve.pareto("s", **asked, as_json=True)
    points = json.loads(said())
    cli_solve.pareto("s", **asked)
    printed = said()
    whole = known.parent_totals()[METRICS[metric].column]
    costs, scores = [point["cost"] for point in points], [point["score"] for point in points]
    assert costs == sorted(costs, reverse=metric == "throughput")
    assert scores == sorted(scores, reverse=True)
    assert len(points) >= 3
    for point in points:
        assert point["of_parent"] == pytest.approx(point["cost"] / whole)
        assert format_quantity(metric, point["cost"]) in printed
    assert (points[-1]["score"], points[-1]["cost"]) == (0, pytest.approx(whole))
    assert f"{metric} of the whole model" in (tmp_path / "front.svg").read_text()


def test_a_front_of_throughput_is_that_of_latency_the_other_way_round(
    store: Store, known: Measured, said: Said
) -> None:
    fronts = []
    for cost in ("latency", "throughput"):
        cli_solve.pareto("s", cost=cost, points=8, db=store.url, as_json=True)
        fronts.append(json.loads(said()))
    generated = known.scenario.batch * known.scenario.generated_tokens
    for slow, fast in zip(*fronts, strict=True):
        assert slow["architecture"] == fast["architecture"]
        assert fast["cost"] == pytest.approx(generated / slow["cost"])


@pytest.mark.parametrize("metric", METRICS)
def test_the_report_and_the_card(store: Store, known: Measured, said: Said, metric: str, tmp_path: Path) -> None:
    trial = store.trial(solved(store, metric, said)["id"])
    page = write_report(store, known.search, tmp_path / "report.html", trial).read_text()
    assert f"Score against {metric}" in page
    assert predicted(trial, metric) in page
    card = markdown(comparison(known.search, trial))
    (row,) = [line for line in card.splitlines() if re.match(rf"\| {metric}(, predicted)? \|", line)]
    assert predicted(trial, metric) in row


@pytest.mark.parametrize("metric", METRICS)
def test_strategies_side_by_side(store: Store, known: Measured, said: Said, metric: str) -> None:
    trial = store.update_trial(solved(store, metric, said)["id"], kl_whole=0.5)
    lines = [
        StrategyResult("MIP", trial=trial, of_parent=trial.predicted_latency_s / known.parent_totals()["latency_s"])
    ]
    print_comparison(known.search, lines, as_json=False)
    printed = said()
    assert f"{lines[0].of_parent:.1%}" in printed if metric == "latency" else predicted(trial, metric) in printed
    print_comparison(known.search, lines, as_json=True)
    assert json.loads(said())[0]["trial"][f"predicted_{METRICS[metric].column}"]


# --- units ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metric", "kept", "shown"),
    [
        ("memory", "10485760.0 B", "10 MiB"),
        ("memory", "1000000000.0 B", "953.674 MiB"),
        ("decode", "0.003 s", "3 ms"),
        ("latency", "0.012345 s", "12.345 ms"),
        ("ttft", "2.0 s", "2 s"),
        ("throughput", "900.0 tok/s", "900 tok/s"),
        ("throughput", "12345678.0 tok/s", "12345678 tok/s"),
        ("parameters", "2100000000.0", "2.1 B"),
        ("latency", "60%", "60%"),
        ("latency", 0.6, "0.6"),
    ],
)
def test_a_limit_is_told_in_the_unit_it_fits(metric: str, kept: object, shown: str) -> None:
    assert said_budget({metric: kept}) == f"{metric} {shown}"


@pytest.mark.parametrize("metric", METRICS)
def test_no_answer_is_in_base_units(store: Store, known: Measured, said: Said, metric: str, tmp_path: Path) -> None:
    share = 1.1 if metric == "throughput" else 0.85
    asked = exact_quantity(metric, share * known.parent_totals()[METRICS[metric].column])
    trial = solved(store, metric, said, asked)
    cli_solve.solve(["s"], budget=[f"{metric}={asked}"], db=store.url)
    main.trials(db=store.url)
    main.show(trial["id"], db=store.url)
    printed = said()
    assert printed.count(f": {metric} {asked}, by") == 2
    assert f"{metric}={asked}" in printed
    kept = trial["budget"][metric]
    assert kept == asked or kept not in printed
    assert repr(float(kept.split()[0])) == kept.split()[0], "JSON stays in base units"
    write_report(store, known.search, tmp_path / "report.html", store.trial(trial["id"]))
    assert f"<td>{metric} {asked}</td>" in (tmp_path / "report.html").read_text()


# --- what was measured ----------------------------------------------------------------------------------------------


def test_the_real_kl_is_shown_and_asked_for(store: Store, known: Measured, said: Said) -> None:
    first, _ = (solved(store, "latency", said, budget)["id"] for budget in ("80%", "60%"))
    main.trials(db=store.url)
    assert "real KL" not in said(), "no column without a value"
    store.update_trial(first, kl_whole=0.625)
    main.trials(db=store.url)
    head, *lines = said().splitlines()
    assert "real KL" in head
    assert "0.6250" in lines[0]
    main.trials(where="kl_whole < 0.7", db=store.url, as_json=True)
    assert [trial["id"] for trial in json.loads(said())] == [first]
    main.show(first, db=store.url)
    assert re.search(r"KL to the parent, on the score text, untrained +0 +0\.6250", said())


def test_a_trial_of_a_measured_childs_architecture_shows_what_was_measured(
    store: Store, known: Measured, said: Said
) -> None:
    built = solved(store, "latency", said)
    measures = dict(latency_s=0.0123, latency_ratio=0.5, latency_spread=0.01, throughput=456.0, decode_s=0.00123)
    store.update_trial(built["id"], **measures, kl=0.25, lm_loss=2.5, perplexity=12.2, heal_tokens=2048)
    # Another budget, to which the same architecture is the answer.
    trial = solved(store, "latency", said, f"{100.001 * built['predicted_latency_s'] / known.whole('latency')}%")
    assert trial["id"] != built["id"]
    assert trial["architecture"] == built["architecture"]
    assert trial["child_key"] == built["child_key"], "it is that child, to be exported as it is"
    assert {name: trial[name] for name in (*measures, "kl", "lm_loss")} == measures | {"kl": 0.25, "lm_loss": 2.5}
    main.trials(ids=str(trial["id"]), db=store.url)
    _, row = said().splitlines()
    assert "12.3 ms" in row
    assert "0.2500" in row
    assert " - " not in row


def test_a_predicted_answer_is_not_padded_with_dashes(store: Store, known: Measured, said: Said) -> None:
    cli_solve.solve(["s"], budget=["latency=70%"], db=store.url)
    main.trials(db=store.url)
    assert not re.search(r"(^| )-( |$)", said(), re.MULTILINE)


# --- cautions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", METRICS)
def test_a_budget_that_the_parent_meets_is_told_of(store: Store, known: Measured, said: Said, metric: str) -> None:
    factor = 0.5 if metric == "throughput" else 80
    value = exact_quantity(metric, factor * known.parent_totals()[METRICS[metric].column])
    trial = solved(store, metric, said, value)
    (caution,) = trial["cautions"]
    assert caution.startswith(f"{metric} {value} is {'less' if metric == 'throughput' else 'more'} than the parent")
    assert caution.endswith("it limits nothing, because the parent itself meets it")
    assert trial["score"] == 0
    cli_solve.solve(["s"], budget=[f"{metric}={value}"], db=store.url)
    assert f"caution: {caution}" in said()
    main.show(trial["id"], db=store.url, as_json=True)
    assert json.loads(said())["cautions"] == [caution]
    cli_solve.pool("s", budget=[f"{metric}={value}"], count=1, db=store.url, as_json=True)
    assert json.loads(said())["cautions"] == [caution]
    cli_solve.pareto("s", budget=[f"{metric}={value}"], points=2, db=store.url)
    assert f"caution: {caution}" in said()


@pytest.mark.parametrize("metric", METRICS)
def test_the_parents_own_value_and_less_is_asked_for_on_purpose(
    store: Store, known: Measured, said: Said, metric: str
) -> None:
    for budget in ("100%", ASKED[metric]):
        assert solved(store, metric, said, budget)["cautions"] == []


def test_a_child_of_nothing_is_told_of(store: Store, known: Measured, said: Said) -> None:
    least = known.fixed.metrics(known.scenario)["latency_s"] / known.whole("latency")
    trial = solved(store, "latency", said, f"{100 * least + 1e-6}%")
    assert set(trial["architecture"].split()) == {"skip+skip"}
    (caution,) = trial["cautions"]
    assert caution.startswith("no layer is left")


@pytest.mark.parametrize(
    ("architecture", "told"),
    [
        ("skip+skip skip+skip kv4+ffn64 skip+skip", None),
        ("window8+skip skip+skip skip+skip skip+skip", None),
        ("linear+ffn64 skip+ffn64 skip+ffn64 skip+ffn64", "no attention is left"),
        ("skip+skip skip+skip skip+skip skip+skip", "no layer is left"),
    ],
)
def test_what_an_architecture_lacks(
    store: Store, known: Measured, said: Said, architecture: str, told: str | None
) -> None:
    trial = store.trial(solved(store, "latency", said)["id"])
    trial.architecture = architecture
    assert [sentence.split(":")[0] for sentence in cautions(known.search, trial)] == ([told] if told else [])


@pytest.mark.parametrize(("loss", "told"), [(math.log(2048), True), (9.0, True), (7.5, False)])
def test_a_parent_that_predicts_nothing_is_told_of(
    store: Store, known: Measured, said: Said, loss: float, told: bool
) -> None:
    trial = store.trial(solved(store, "latency", said)["id"])
    trial = store.update_trial(trial.id, details={"parent": {"lm_loss": loss, "vocabulary": 2048}})
    expected = f"the parent predicts no better than chance: perplexity {math.exp(loss):,.0f} of 2,048 tokens, "
    assert [sentence.startswith(expected) for sentence in cautions(known.search, trial)] == [True] * told
