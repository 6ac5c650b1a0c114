"""Precisions alone, shapes alone, and both: three fronts of one search, from rows that stand in a database."""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import rows
from searches import Here, the_error
from stored import add_measured, add_search

from blocklib.block import SKIP, TABLES, Architecture, Choice, Role, Subblock
from cost_models.metrics import METRICS
from db import models
from db.store import Store
from nas.errors import UsageError
from nas.job.config import load
from nas.job.units import Limit
from nas.report import write_report
from nas.solve.precision_fronts import PrecisionFronts, precision_fronts
from nas.solve.restricted import one_precision, restricted, uniform
from nas.solve.solve import Measured, measured, solve

LAYERS = 3
BITS = {"q8_0": 8.5, "q5_0": 5.5, "q4_0": 4.5}
ROUNDED = {"q8_0": 1e-4, "q5_0": 2e-3, "q4_0": 9e-3}
SHAPES: Mapping[Role, tuple[str, ...]] = {"attention": ("kv4", "kv2", "skip"), "ffn": ("ffn64", "ffn32", "skip")}
WEIGHTS = {"kv4": 6400, "kv2": 3200, "ffn64": 19200, "ffn32": 9600, "skip": 0, "tables": 32000}
PRUNED = {"kv4": 0.0, "kv2": 0.02, "ffn64": 0.0, "ffn32": 0.05, "skip": 0.5}


def choices() -> Iterator[Choice]:
    for layer in range(LAYERS):
        for role, names in SHAPES.items():
            for what in map(Subblock.parse, names):
                yield from (Choice(layer, role, what.at(name)) for name in (BITS if what != SKIP else [""]))
    yield from (Choice(LAYERS, "tables", TABLES.at(name)) for name in BITS)


def add(store: Store, folder: Path, harm: float = 1.0, shapes: bool = True, dtype: str = "q8_0") -> Measured:
    """A search of shapes and precisions with made-up scores and costs. `harm` is what pruning does, times that."""
    job = folder / "job.yaml"
    job.write_text(
        "name: mixed\nparent: embedded\ndata: {train: stdlib}\nbudget: {file: 60%}\nheal: null\n"
        f"space: {{precision: [{', '.join(BITS)}]}}\nexport: {{format: gguf}}\n"
    )
    scenario = dict(device="cpu", engine="llama_cpp", dtype=dtype, batch=1, prompt_tokens=16, generated_tokens=4)
    search = store.add_search(
        rows.search(
            name="mixed", parent_architecture=" ".join(["kv4+ffn64"] * LAYERS), request=load(job).canonical(),
            scenario=scenario, hardware="Some CPU",
        )
    )  # fmt: skip
    options = []
    for choice in choices():
        text, shape = str(choice), str(choice.what.unrounded)
        if not shapes and shape not in ("kv4", "ffn64", "tables"):
            continue
        kl = harm * PRUNED.get(shape, 0.0) * (1 + choice.layer) + ROUNDED.get(choice.precision, 0.0) * (
            2 + choice.layer
        )
        size = bytes_of(shape, choice.precision)
        store.add_costs(
            [rows.cost(f"c {text}", name=text, weight_bytes=size, prefill_s=size / 1e6, decode_s=size / 1e7)]
        )
        store.add_scores([rows.score(f"s {text}", choice=text, kl=kl)])
        place = dict(first_slot=choice.first_slot, span=choice.span, name=str(choice.what))
        keys = dict(score_key=f"s {text}", cost_keys=[f"c {text}"])
        options.append(models.OptionRow(search_id=search.id, choice=text, **place, **keys))
    store.set_options(search.id, options)
    whole = bytes_of("tables", "q8_0") + LAYERS * sum(bytes_of(shape, "q8_0") for shape in ("kv4", "ffn64"))
    nothing = dict(prefill_s=0.0, decode_s=0.0, parameters=0, weight_bytes=0)
    parent = dict(prefill_s=whole / 1e6, decode_s=whole / 1e7, parameters=10**5, weight_bytes=whole)
    search.parent_costs = {"fixed": nothing, "whole": parent}
    return measured(store, store.add_search(search))


def bytes_of(shape: str, precision: str) -> int:
    return int(WEIGHTS[shape] * BITS.get(precision, 0) / 8)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "nas.db")


def test_each_front_holds_its_own_options(store: Store, tmp_path: Path) -> None:
    found = precision_fronts(add(store, tmp_path), "file", (), 8)
    for point in found.precisions:
        assert str(Architecture.parse(point.architecture).unrounded).split() == ["kv4+ffn64"] * LAYERS
    for point in found.shapes:
        assert set(re.findall(r"@(\w+)", point.architecture)) == {"q8_0"}
    assert any("skip" in point.architecture for point in found.shapes)
    assert any("skip" in point.architecture and "q4_0" in point.architecture for point in found.both)
    assert found.offers_shapes


@pytest.mark.parametrize("cost", ["file", "latency", "throughput", "bits"])
@pytest.mark.parametrize("harm", [0.002, 0.05, 1000.0])
def test_pruning_pays_where_each_budget_solved_alone_says_so(
    store: Store, tmp_path: Path, cost: str, harm: float
) -> None:
    known = add(store, tmp_path, harm)
    found, alone = precision_fronts(known, cost, (), 10), restricted(known, "precisions")
    expected = []
    for point in found.precisions:
        limit = Limit(cost, point.cost * (1 - 1e-9 if METRICS[cost].at_least else 1 + 1e-9), relative=False)
        one, other = solve(known, (limit,)).score, solve(alone, (limit,)).score
        assert other == pytest.approx(point.score)
        expected.append(one < other * (1 - 1e-6))
    assert list(found.pays) == expected
    start = [at.cost for index, at in enumerate(found.precisions) if all(expected[: index + 1])]
    assert found.pays_from == (start[-1] if start else None)
    assert ("does not pay" in found.said()) == (harm == 1000.0)


def test_the_parent_in_one_precision(store: Store, tmp_path: Path) -> None:
    known = add(store, tmp_path)
    assert {name: len(choices) for name, choices in uniform(known).items()} == dict.fromkeys(BITS, 2 * LAYERS + 1)
    for mark in precision_fronts(known, "file", (), 4).uniform:
        whole = bytes_of("tables", mark.precision)
        whole += LAYERS * (bytes_of("kv4", mark.precision) + bytes_of("ffn64", mark.precision))
        assert mark.cost == whole
        assert mark.score == pytest.approx(ROUNDED[mark.precision] * (2 * sum(range(2, 2 + LAYERS)) + 2 + LAYERS))


def test_shapes_alone_are_in_the_type_that_is_served_or_the_finest(store: Store, tmp_path: Path) -> None:
    assert one_precision(add(store, tmp_path, dtype="q5_0")) == "q5_0"
    assert one_precision(add(store, tmp_path, dtype="f16")) == "q8_0"


def test_limits_that_only_pruned_children_meet_leave_the_others_empty(store: Store, tmp_path: Path) -> None:
    found = precision_fronts(add(store, tmp_path), "latency", (Limit("file", 20_000, relative=False),), 4)
    assert found.both
    assert (found.precisions, found.shapes, found.pays_from) == ((), (), None)
    assert "nothing meets the other limits" in found.said()


def section(page: Path, name: str) -> str:
    (found,) = re.findall(f'<section id="{name}">(.*?)</section>', page.read_text(), re.DOTALL)
    return str(found)


def test_the_report_draws_them_and_says_where_pruning_pays(store: Store, tmp_path: Path) -> None:
    known = add(store, tmp_path, harm=0.05)
    shown = section(write_report(store, known.search, tmp_path / "report.html"), "front")
    assert shown.count("<svg") == 2
    assert "Pruning starts to pay on this model at" in shown
    for words in ("precisions alone", "shapes alone, in q8_0", "both", "parent in one precision", *BITS):
        assert f">{words}</text>" in shown, words


def test_without_other_shapes_there_is_one_front(store: Store, tmp_path: Path) -> None:
    known = add(store, tmp_path, shapes=False)
    shown = section(write_report(store, known.search, tmp_path / "report.html"), "front")
    assert "no other shapes than the parent" in shown
    assert ">precisions alone</text>" in shown
    assert "shapes alone" not in shown


def test_a_front_of_one_kind_as_json(store: Store, tmp_path: Path, here: Here) -> None:
    known = add(store, tmp_path)
    store.close()
    found: PrecisionFronts = precision_fronts(known, "file", (), 5)
    for only, points in (("precisions", found.precisions), ("shapes", found.shapes)):
        asked = ("pareto", "mixed", "--cost", "file", "--points", "5", "--only", only, "--json")
        done = here(tmp_path, *asked)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == [vars(point) for point in points]


def test_a_search_without_precisions_has_nothing_to_leave_out(store: Store, tmp_path: Path, here: Here) -> None:
    search = add_search(store, tmp_path)
    add_measured(store, search)
    known = measured(store, search)
    assert restricted(known, None) is known
    with pytest.raises(UsageError):
        restricted(known, "shapes")
    store.close()
    done = here(tmp_path, "pareto", search.name, "--only", "shapes")
    assert "space.precision" in the_error(done.stderr)
