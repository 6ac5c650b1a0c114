"""Quantities with units: "12 ms", "1.5 GiB", "900 tok/s", "2.1 B". Standard library only.

A value is a float in its unit's base everywhere else in the program: seconds, tokens per second, joules, bytes,
bits, parameters.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cost_models.errors import QuantityError

NUMBER = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(\D.*)?")
"""A number and the unit after it."""


@dataclass(frozen=True)
class Unit:
    """How quantities of one dimension are read and printed.

    `shown` are the units it prints in, in ascending order; `factors` has every unit it reads, in `base` units.
    `is_counted`: only whole numbers of the base unit exist.
    """

    base: str
    shown: tuple[str, ...]
    factors: Mapping[str, float]
    examples: str
    is_counted: bool = False

    def parse(self, name: str, text: object) -> float:
        """`text` in base units; `name` says in errors which value it is. Raises QuantityError for a missing or a
        wrong unit."""
        match = None if isinstance(text, bool) else NUMBER.fullmatch(str(text).strip())
        if match is None:
            raise QuantityError(f"{text!r} is not a value for {name}; write it like {self.examples}")
        unit = (match[2] or "").strip()
        if unit not in self.factors:
            problem = f"{unit!r} in {text!r} is not a unit of {name}" if unit else f"{text!r} has no unit"
            units = ", ".join(unit for unit in self.factors if unit)
            raise QuantityError(f"{problem}; {name} is given in {units}, like {self.examples}")
        return float(match[1]) * self.factors[unit]

    def format(self, name: str, value: float) -> str:
        """To three significant digits or the whole number: "12.3 ms", "1.50 GiB", "1234 tok/s", "2.10 B".

        Raises ValueError for NaN and infinity, as `exact` does; `name` says which value it is.
        """
        number, unit = self._fitting(name, value)
        decimals = 0 if number == 0 else max(0, 2 - math.floor(math.log10(abs(number) * 1.0005)))
        if unit == "" and number == round(number):
            decimals = 0
        return f"{number:.{decimals}f} {unit}".rstrip()

    def exact(self, name: str, value: float) -> str:
        """As someone may have written it: "12.345 ms", "10 MiB", "900 tok/s". Six significant digits, less trailing
        zeros."""
        number, unit = self._fitting(name, value)
        digits = f"{number:.6g}"
        return f"{digits if 'e' not in digits else f'{number:.0f}'} {unit}".rstrip()

    def _fitting(self, name: str, value: float) -> tuple[float, str]:
        """A value in the unit it prints in."""
        if not math.isfinite(value):
            raise ValueError(f"{name} is {value}, which is no quantity")
        # 0.9995: what would round up to 1000 or 1024 of one unit is shown as one of the next.
        fitting = [unit for unit in self.shown if abs(value) >= 0.9995 * self.factors[unit]]
        unit = (fitting or [self.base if value == 0 else self.shown[0]])[-1]
        return value / self.factors[unit], unit


SECONDS = Unit(
    "s",
    ("ns", "us", "ms", "s"),
    {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1, "min": 60, "h": 3600},
    "12 ms, 1.5 s",
)
RATE = Unit("tok/s", ("tok/s",), {"tok/s": 1, "tokens/s": 1}, "900 tok/s")
JOULES = Unit(
    "J", ("uJ", "mJ", "J", "kJ"), {"uJ": 1e-6, "µJ": 1e-6, "mJ": 1e-3, "J": 1, "kJ": 1e3, "Wh": 3600}, "12 J, 800 mJ"
)
BYTES = Unit(
    "B",
    ("B", "KiB", "MiB", "GiB", "TiB"),
    {"B": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "TiB": 2**40, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12},
    "800 MiB, 1.5 GiB",
    is_counted=True,
)
BITS = Unit("", ("",), {"": 1, "bit": 1, "bits": 1}, "4.5, 3.8 bits")
COUNT = Unit(
    "", ("", "k", "M", "B", "T"), {"": 1, "k": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}, "350 M, 2.1 B", is_counted=True
)
