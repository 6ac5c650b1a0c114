"""A table of costs measured elsewhere: the seconds that each geometry adds, as JSON.

`nas measure` writes one on the machine that serves; a job with `measure: {table: FILE}` reads it on the machine that
builds. A table may also come from a phone, or from any program: only `scenario`, `hardware` and `geometries` are
needed.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from blocklib.block import CACHE, Role, Subblock
from blocklib.checkpoint import inspect
from blocklib.errors import BlocklibError
from blocklib.loading import readable
from cost_models.geometry import FIXED, Geometry, geometry
from cost_models.scenario import KV_CACHES, Scenario
from cost_models.timing.measured_geometry import MeasuredGeometry
from db import models
from db.store import Store
from nas.errors import TableError
from nas.files.home import home_of
from nas.files.output import write_whole
from nas.files.strict_json import document, leaves, read
from nas.job.digest import digest
from nas.job.request import checkpoint_of
from nas.solve.solve import measured
from nas.text.parent_folder import parent_folder

_Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class GeometryTimes(_Strict):
    """Seconds that one geometry adds for the whole batch: to a prefill, and to one decode step.

    `*_error_*` are standard errors; `spread` is that of a model made of it alone, as a share of the parent's time. None
    where nobody knows.
    """

    prefill_s: _Amount
    decode_s: _Amount = 0.0
    prefill_error_s: _Amount | None = None
    decode_error_s: _Amount | None = None
    prefill_j: _Amount | None = None
    decode_j: _Amount | None = None
    prefill_error_j: _Amount | None = None
    decode_error_j: _Amount | None = None
    spread: _Amount = 0.0
    contention: _Amount | None = None


class CostTable(_Strict):
    """`hardware` names the machine and the engine; `shape` has the parent's sizes, as a `Shape`, and may be left out;
    `geometries` are by name, as `attention.kv8`, `ffn.ffn5504`, or `fixed`.
    """

    scenario: Scenario
    hardware: str
    shape: dict[str, Any] | None = None
    geometries: dict[str, GeometryTimes]

    @property
    def digest(self) -> str:
        return digest(self._plain())

    @property
    def times(self) -> dict[Geometry, MeasuredGeometry]:
        return {(geometry := _geometry(name)): _measured(geometry, known) for name, known in self.geometries.items()}

    def measured(self, wanted: Iterable[Geometry], where: Path) -> dict[Geometry, MeasuredGeometry]:
        """The times of `wanted`. Raises TableError that names the geometries that are missing."""
        times = self.times
        missing = [str(geometry) for geometry in wanted if geometry not in times]
        if missing:
            raise TableError(
                f"{where}: no times of {', '.join(missing)}; add them, or leave the options that need them out of space"
            )
        return {geometry: times[geometry] for geometry in wanted}

    def write(self, path: Path) -> "CostTable":
        """Write it as JSON, whole or not at all. Returns the table."""
        write_whole(path, f"{json.dumps(self._plain(), indent=2)}\n".encode())
        return self

    def _plain(self) -> dict[str, Any]:
        """As JSON has it. Without a type of keys and values it is the same table as before there was one."""
        unsaid = {"scenario": {"kv_cache"}} if self.scenario.kv_cache is None else None
        return self.model_dump(mode="json", exclude=unsaid)

    def check_shape(self, shape: Mapping[str, Any] | None, where: Path) -> None:
        """Raise TableError where the table says that it is of a parent of other sizes than `shape`, a `Shape`'s."""
        mine = shape or {}
        differ = [f"{name} {value!r}, not {mine.get(name)!r}" for name, value in (self.shape or {}).items()
                  if value != mine.get(name)]  # fmt: skip
        if differ:
            raise TableError(f"{where}: it was measured for another parent: {'; '.join(differ)}; name another file")

    def check_scenario(self, asked: Scenario, where: Path) -> None:
        """Raise TableError where the table was measured under another scenario."""
        mine = asdict(asked)
        differ = [
            f"{name} {value!r}, not {mine[name]!r}"
            for name, value in asdict(self.scenario).items()
            if value != mine[name]
        ]
        if differ:
            raise TableError(
                f"{where}: it was measured under another scenario: {'; '.join(differ)}; give the table's values under "
                "scenario, or measure again"
            )


def read_cost_table(path: Path) -> CostTable:
    """Raises TableError, which names the place, where the file is no table of costs."""
    text = read(path)
    leaves(document(text, str(path)), str(path))  # refuses what pydantic takes: a key that is given twice
    try:
        table = CostTable.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        said = first["ctx"]["error"] if first["type"] == "value_error" else first["msg"]
        raise TableError(f"{path}: {f'{place}: ' if place else ''}{said}") from error
    for name in table.geometries:
        try:
            _geometry(name)
        except (TableError, BlocklibError) as error:
            raise TableError(f"{path}: geometries.{name}: {error}") from error
    return table


def with_times(table: CostTable, times: Mapping[Geometry, MeasuredGeometry]) -> CostTable:
    """The table with these times, new or again."""
    fields = GeometryTimes.model_fields
    geometries = dict(table.geometries) | {
        str(geometry): GeometryTimes(**{name: value for name, value in asdict(timed).items() if name in fields})
        for geometry, timed in times.items()
    }
    return table.model_copy(update={"geometries": geometries})


def table_of(store: Store, search: models.SearchRow) -> CostTable:
    """The times that a finished search was solved on, as a table.

    Reads the parent's sizes from its checkpoint. Raises UnfinishedSearchError before the search is finished, and as
    `parent_folder` and `inspect` do where the checkpoint is gone.
    """
    known = measured(store, search)
    folder = parent_folder(checkpoint_of(search.parent), home_of(store, search), code=known.request.allows_remote_code)
    shape = readable(inspect(folder)).shape.written
    rows = {row.name: row for option in store.options(search.id) for row in option.costs or ()}
    fields = GeometryTimes.model_fields
    geometries = {
        name: GeometryTimes(**{field: getattr(row, field) for field in fields}) for name, row in sorted(rows.items())
    }
    fixed = {field: getattr(known.fixed, field) for field in fields if field != "spread"}
    geometries = {str(FIXED): GeometryTimes(**fixed), **geometries}
    return CostTable(scenario=known.scenario, hardware=search.hardware, shape=shape, geometries=geometries)


_AROUND: dict[str, Role] = {"fixed": "tables", "head": "head", "embedding": "embedding"}
"""The roles of tables, by the name of their geometry."""


def _geometry(name: str) -> Geometry:
    role, _, spelling = name.partition(".")
    spelling, _, cache = spelling.partition(f" {CACHE}@")
    if name == str(FIXED):
        return FIXED
    around, at, precision = name.partition("@")
    if at and around in _AROUND:
        return geometry(_AROUND[around], Subblock.parse(f"{_AROUND[around]}@{precision}"))
    if role not in ("attention", "ffn") or cache not in ("", *chain.from_iterable(KV_CACHES.values())):
        raise TableError(
            "a geometry is named like attention.kv8, attention.kv8 cache@q8_0, ffn.ffn5504@q4_0, head@q8_0, or fixed"
        )
    return Geometry("attention" if role == "attention" else "ffn", Subblock.parse(spelling), cache)


def _measured(geometry: Geometry, times: GeometryTimes) -> MeasuredGeometry:
    return MeasuredGeometry(geometry, rounds=0, layers=0, **times.model_dump())
