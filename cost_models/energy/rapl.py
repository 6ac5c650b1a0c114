"""The energy counters of a CPU, RAPL, as Linux shows them: `intel-rapl:0/energy_uj` and its neighbours, AMD's too.

Each zone is a folder with its `name`, a counter in microjoules and the value at which that wraps around
(https://docs.kernel.org/power/powercap/powercap.html).
"""

from pathlib import Path

from cost_models.energy.meter import POWERCAP
from cost_models.errors import NoMeterError


class Rapl:
    """All packages of the machine and their DRAM. Raises NoMeterError where the folder shows none, or none that this
    process may read."""

    sample_s = 0.05
    """The counters move about once in a millisecond."""

    def __init__(self, folder: Path = POWERCAP):
        self._zones = [zone for zone in sorted(folder.glob("intel-rapl:*")) if _is_counted(zone)]
        if not self._zones:
            raise NoMeterError(
                f"this machine shows no energy counter of its CPU ({folder}/intel-rapl:*); leave energy out of the "
                "budget, or measure on a machine that does (virtual machines mostly do not)"
            )
        self._total_uj = 0
        try:
            self._range_uj = [int((zone / "max_energy_range_uj").read_text()) for zone in self._zones]
            self._last_uj = self._read()
        except PermissionError as error:
            raise NoMeterError(
                f"{error.filename} may not be read; let everyone read it, until the next boot: sudo chmod a+r "
                f"{folder}/intel-rapl:*/energy_uj"
            ) from error
        except OSError as error:
            raise NoMeterError(f"{error.filename}: {error.strerror}; leave energy out of the budget") from error

    def joules(self) -> float:
        now_uj = self._read()
        for before, now, most in zip(self._last_uj, now_uj, self._range_uj, strict=True):
            self._total_uj += now - before if now >= before else now - before + most
        self._last_uj = now_uj
        return self._total_uj / 1e6

    def _read(self) -> list[int]:
        return [int((zone / "energy_uj").read_text()) for zone in self._zones]


def _is_counted(zone: Path) -> bool:
    """Packages hold their cores, so these are not counted again; a package does not hold its DRAM; the platform holds
    all, and is not everywhere."""
    name = (zone / "name").read_text().strip()
    return name.startswith("package") or name == "dram"
