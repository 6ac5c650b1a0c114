"""The main memory that Linux lets a process have: a container's limit, or that of another control group.

A group lies in others, and the limit of each holds. Both versions of control groups are read, by the files of each.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

_ROOT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60
"""The first version writes a number where nothing is limited: the largest there is, less a part of a page."""


@dataclass(frozen=True)
class _Version:
    """The files of a group: its limit and what it holds; and the lines of `memory.stat` that count files in memory."""

    limit: str
    held: str
    of_files: tuple[str, str]


_VERSIONS = (
    _Version("memory.max", "memory.current", ("inactive_file", "active_file")),
    _Version("memory.limit_in_bytes", "memory.usage_in_bytes", ("total_inactive_file", "total_active_file")),
)


@dataclass(frozen=True)
class ControlGroup:
    """A group by its folder."""

    folder: Path

    @property
    def _version(self) -> _Version | None:
        return next((each for each in _VERSIONS if (self.folder / each.limit).is_file()), None)

    @property
    def most_bytes(self) -> int:
        """The memory that its programs may hold together; where nothing limits it, more than any machine has."""
        if self._version is None:
            return sys.maxsize
        text = (self.folder / self._version.limit).read_text().strip()
        return int(text) if text.isdecimal() and int(text) < _UNLIMITED else sys.maxsize

    @property
    def free_bytes(self) -> int:
        """The memory that is left of that. Files in memory count as free, as in MemAvailable: they go when room is
        asked for."""
        if self._version is None or self.most_bytes == sys.maxsize:
            return sys.maxsize
        counted = dict(line.split() for line in (self.folder / "memory.stat").read_text().splitlines())
        files = sum(int(counted[line]) for line in self._version.of_files)
        return max(0, self.most_bytes - int((self.folder / self._version.held).read_text()) + files)


def control_groups(root: Path = _ROOT, own: Path = _OWN) -> list[ControlGroup]:
    """The groups that this process is in, from the root to its own; none where the system has no such thing. `own` is
    the file in which Linux lists them."""
    found: dict[Path, None] = {}
    for line in own.read_text().splitlines() if own.is_file() else ():
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            # A container may see its own group as the root, whatever its path is outside.
            inside = (root / controllers / path.lstrip("/")).relative_to(root)
            found |= dict.fromkeys(root / part for part in (*reversed(inside.parents), inside))
    return [ControlGroup(folder) for folder in found]
