"""Energy: read from counters laid out as the kernel does, attributed as seconds are, limited like any other metric."""

import importlib.util
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import Any

import pytest
import stored
import torch
from powercap import add_zone, running
from small_costs import SCENARIO, Clocked, config_of

from blocklib.block import Subblock
from blocklib.model import PuzzleNasConfig
from blocklib.parent import own_shape
from cost_models.cost import ZERO, Cost
from cost_models.energy.meter import POWERCAP, meter_of
from cost_models.energy.nvml import Nvml
from cost_models.energy.rapl import Rapl
from cost_models.engines.torch_eager import TorchEager, random_model, time_models
from cost_models.errors import NoMeterError, TimingError
from cost_models.geometry import FIXED, Geometry
from cost_models.metrics import METRICS
from cost_models.timing.measure import measure
from cost_models.timing.measured_geometry import MeasuredGeometry
from cost_models.timing.pair import Comparison, Paired, Rounds
from db.store import Store
from nas.cli import main
from nas.cli import solve as cli_solve
from nas.errors import UnfinishedSearchError
from nas.job.config import parse
from nas.job.units import needs_meter, parse_budget
from nas.report import write_report
from nas.solve.budget_loop import verdicts
from nas.solve.solve import measured
from nas.stages.child_times import times_in
from nas.stages.preflight import check, check_meter
from nas.view.table import comparison

ENERGY = METRICS["energy"]
TWO = Rounds(least=2, most=2)
FFN12 = Geometry("ffn", Subblock("ffn", "12"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "powercap"


# Counters


def test_packages_and_their_dram_are_counted_once(folder: Path) -> None:
    zones = {
        "intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "package-1",
        "intel-rapl:2": "psys", "intel-rapl-mmio:0": "package-0",
    }  # fmt: skip
    paths = {zone: add_zone(folder, zone, name) for zone, name in zones.items()}
    meter = Rapl(folder)
    assert meter.joules() == 0
    for place, path in enumerate(paths.values()):
        (path / "energy_uj").write_text(f"{10**place * 1_000_000}\n")
    assert meter.joules() == 1 + 100 + 1000
    assert meter.joules() == 1 + 100 + 1000


def test_a_counter_that_wraps_around_goes_on(folder: Path) -> None:
    zone = add_zone(folder, "intel-rapl:0", "package-0", counter_uj=9_000_000, range_uj=10_000_000)
    meter = Rapl(folder)
    for counter, joules in ((9_500_000, 0.5), (1_000_000, 2.0), (0, 11.0)):
        (zone / "energy_uj").write_text(f"{counter}\n")
        assert meter.joules() == pytest.approx(joules)


def test_a_counter_that_a_process_moves_never_falls(folder: Path) -> None:
    with running(add_zone(folder, "intel-rapl:0", "package-0", counter_uj=900_000, range_uj=1_000_000)):
        meter, seen = Rapl(folder), [0.0]
        while seen[-1] < 3.5:
            seen.append(meter.joules())
    assert seen == sorted(seen)


def test_a_machine_that_shows_no_counter_says_what_to_do(folder: Path) -> None:
    add_zone(folder, "intel-rapl:0", "psys")
    for where in (folder, folder / "nowhere"):
        with pytest.raises(NoMeterError, match="leave energy out of the budget"):
            meter_of("cpu", where)
    with pytest.raises(NoMeterError, match="mps"):
        meter_of("mps")


def test_a_counter_without_its_range_says_so(folder: Path) -> None:
    (add_zone(folder, "intel-rapl:0", "package-0") / "max_energy_range_uj").unlink()
    with pytest.raises(NoMeterError, match=r"max_energy_range_uj: .*; leave energy out of the budget"):
        Rapl(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_counter_that_may_not_be_read_says_how_to_let_it(folder: Path) -> None:
    (add_zone(folder, "intel-rapl:0", "package-0") / "energy_uj").chmod(0)
    with pytest.raises(NoMeterError, match=r"sudo chmod a\+r"):
        Rapl(folder)


@pytest.mark.skipif(importlib.util.find_spec("pynvml") is not None, reason="it is installed")
def test_the_reader_of_a_gpus_energy_is_optional() -> None:
    with pytest.raises(NoMeterError, match=r"puzzle-nas\[energy\]"):
        Nvml("GPU-0")


@pytest.mark.skipif(not torch.cuda.is_available() or not importlib.util.find_spec("pynvml"), reason="needs a GPU")
def test_a_gpu_counts_joules() -> None:
    meter = meter_of("cuda")
    square = torch.rand(4096, 4096, device="cuda")
    before = meter.joules()
    for _ in range(500):
        square = torch.nn.functional.normalize(square @ square)
    torch.cuda.synchronize()
    assert meter.joules() > before


# Stacks and children


@pytest.fixture(scope="module")
def config() -> PuzzleNasConfig:
    return config_of()


class Steady:
    """A meter of 50 W. No other process moves it on, so a busy machine cannot hold it up."""

    sample_s = 0.05

    def joules(self) -> float:
        return 50 * perf_counter()


def fifty_watts(*models: Any, **how: Any) -> Comparison:
    """Times two models; the joules are those of 50 W in just these seconds."""
    timed = time_models(*models, **how)
    energy = {
        name.replace("_s", "_j"): Paired(*(tuple(50 * s for s in each) for each in vars(paired).values()))
        for name, paired in timed.parts.items()
    }
    return replace(timed, energy=energy)


def test_joules_are_shared_out_as_seconds_are(config: PuzzleNasConfig) -> None:
    seen = list(measure(config, [FFN12], SCENARIO, TWO, engine=Clocked(clock=fifty_watts)))
    found = {one.geometry: one.cost for one in seen if isinstance(one, MeasuredGeometry)}
    assert set(found) >= {FIXED, FFN12}
    for cost in found.values():
        assert cost.prefill_j == pytest.approx(50 * cost.prefill_s)
        assert cost.decode_j == pytest.approx(50 * cost.decode_s)
        assert cost.prefill_error_j == pytest.approx(50 * (cost.prefill_error_s or 0.0))
    layers = own_shape(config).layers
    counts = {part: 1 if part == FIXED else layers for part in found if part != FFN12}
    whole = sum((found[part] for part, count in counts.items() for _ in range(count)), ZERO)
    latency_s = METRICS["latency"].of(whole, SCENARIO, None)
    assert latency_s
    assert ENERGY.of(whole, SCENARIO, None) == pytest.approx(50 * latency_s)


def test_a_meter_that_stands_still_is_an_error(config: PuzzleNasConfig, folder: Path) -> None:
    add_zone(folder, "intel-rapl:0", "package-0")
    with pytest.raises(TimingError, match="J while a model ran"):
        list(measure(config, [], SCENARIO, TWO, engine=TorchEager(Rapl(folder))))


def test_a_child_measured_beside_its_parent(config: PuzzleNasConfig) -> None:
    from blocklib.kinds import parent_architecture

    model = random_model(config, parent_architecture(own_shape(config)), SCENARIO)
    timed = time_models(model, model, SCENARIO, TWO, meter=Steady())
    times = times_in(timed)
    columns = times.child
    assert ENERGY.columns - {ENERGY.predicted, ENERGY.predicted_error} <= columns.keys()
    assert columns["energy_j"] == pytest.approx(columns["energy_ratio"] * times.parent["energy_j"])
    assert columns["energy_spread"] >= 0
    unmetered = times_in(replace(timed, energy={})).child
    assert (unmetered["energy_j"], unmetered["energy_ratio"], unmetered["energy_spread"]) == (None, None, None)


def test_the_rounds_of_two_timings_are_joined_in_joules_as_in_seconds() -> None:
    def timed(joules: float) -> Comparison:
        pair = Paired((1.0,), (2.0,))
        return Comparison(SCENARIO, pair, pair, energy={"prefill_j": pair, "decode_j": Paired((1.0,), (joules,))})

    both = timed(3.0).and_then(timed(5.0))
    assert both.energy["decode_j"].ratios == (3.0, 5.0)
    energy = both.of(ENERGY)
    assert energy is not None
    assert energy.other_samples == (2 + 3 * 3.0, 2 + 3 * 5.0)
    one_token = replace(both, scenario=replace(SCENARIO, generated_tokens=1), decode=None)
    assert one_token.of(ENERGY) == one_token.energy["prefill_j"]


# A search whose options were measured in joules


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "nas.db") as store:
        search = stored.add_search(store, tmp_path, "s", generated_tokens=4)
        stored.add_measured(store, search, is_metered=True)
        yield store


def test_an_energy_budget_is_met_like_any_other(
    store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    search = store.find_search("s")
    whole = measured(store, search).whole("energy")
    assert whole == pytest.approx(10 * search.parent_costs["whole"]["prefill_s"] * (1 + 3 * 2 * 0.1))
    cli_solve.solve(["s"], budget=["energy=70%"], db=store.url, as_json=True)
    trial = json.loads(capsys.readouterr().out)
    assert trial["predicted_energy_j"] <= 0.7 * whole
    assert trial["verdicts"] == {"energy": "not measured"}
    cli_solve.solve(["s"], budget=[f"energy={0.7 * whole} J"], db=store.url, as_json=True)
    assert json.loads(capsys.readouterr().out)["architecture"] == trial["architecture"]
    cli_solve.pareto("s", cost="energy", points=4, db=store.url, as_json=True)
    assert all(point["of_parent"] <= 1 for point in json.loads(capsys.readouterr().out))
    row = store.update_trial(
        trial["id"], latency_s=1.0, latency_ratio=0.7, latency_spread=0.0, energy_j=0.69 * whole, energy_ratio=0.69,
        energy_spread=0.001, details={"parent": {"energy_j": whole}},
    )  # fmt: skip
    assert verdicts(search, row) == {"energy": "met"}
    assert "(69.0% ± 0.1%)" in {line.what: line.child for line in comparison(search, row)}["energy, measured"]
    main.trials(where="energy_ratio < 0.7 and energy_j > 0", db=store.url, as_json=True)
    # The other trial is the same child.
    assert [one["architecture"] for one in json.loads(capsys.readouterr().out)] == 2 * [trial["architecture"]]
    assert "energy at most 70% of the parent's" in write_report(store, search, tmp_path / "r.html", row).read_text()


def test_a_search_that_no_meter_was_read_in_says_what_to_do(tmp_path: Path) -> None:
    with Store.open(tmp_path / "nas.db") as store:
        search = stored.add_search(store, tmp_path, "s")
        stored.add_measured(store, search)
        known = measured(store, search)
        with pytest.raises(UnfinishedSearchError, match="energy was not measured in search s"):
            known.problem(parse_budget("energy=70%"))


def test_what_is_unknown_of_a_part_is_unknown_of_the_whole() -> None:
    whole = Cost(prefill_j=1.0, decode_j=2.0) + Cost(prefill_j=None, decode_j=1.0)
    assert ENERGY.of(whole, SCENARIO, None) is None
    assert "energy_j" not in whole.totals(SCENARIO, 1)
    assert METRICS["latency"].of(whole, SCENARIO, None) == 0


# Refused before any work


def request(**changed: Any) -> Any:
    job = {"parent": "embedded", "data": {"train": "stdlib"}, "budget": {"energy": "70%"}} | changed
    return parse(json.dumps(job), "job")


def test_a_budget_of_energy_needs_a_meter(folder: Path) -> None:
    assert needs_meter(request().budget)
    with pytest.raises(NoMeterError, match=r"budget\.energy: this machine shows no energy counter"):
        check_meter(request(), folder)
    check_meter(request(budget={"latency": "70%"}), folder)
    add_zone(folder, "intel-rapl:0", "package-0")
    check_meter(request(), folder)
    flash = {"dram": "2 GB", "dram_speed": "60 GB/s", "flash_speed": "1 GB/s"}
    with pytest.raises(NoMeterError, match="simulated"):
        check_meter(request(scenario={"batch": 1, "flash": flash}), folder)


@pytest.mark.skipif(any(POWERCAP.glob("intel-rapl:*")), reason="this machine has a meter")
def test_a_search_without_a_meter_ends_before_any_work() -> None:
    with pytest.raises(NoMeterError, match=r"budget\.energy"):
        check(request())
