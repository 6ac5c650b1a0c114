"""The memory that this machine, and a control group on it, have left."""

import sys
from pathlib import Path

import torch

from cost_models.control_group import ControlGroup, control_groups
from cost_models.hardware import available_bytes, total_bytes

GIB = 2**30
CPU = torch.device("cpu")


def group(folder: Path, most: str) -> ControlGroup:
    """The files that Linux has of a group that holds 6 GiB, 4 of them files in memory."""
    files = {"memory.max": most, "memory.current": str(6 * GIB)}
    files["memory.stat"] = f"anon {2 * GIB}\nfile {4 * GIB}\ninactive_file {3 * GIB}\nactive_file {GIB}"
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")
    return ControlGroup(folder)


def test_a_control_group_leaves_its_limit_less_what_it_holds(tmp_path: Path) -> None:
    limited = group(tmp_path, str(8 * GIB))
    assert limited.most_bytes == 8 * GIB
    assert limited.free_bytes == 6 * GIB
    assert group(tmp_path, str(1 * GIB)).free_bytes == 0


def test_a_group_without_a_limit_takes_nothing_away(tmp_path: Path) -> None:
    for none in (ControlGroup(tmp_path / "no such folder"), group(tmp_path, "max")):
        assert none.most_bytes == none.free_bytes == sys.maxsize


def test_this_machine_has_no_more_free_than_its_group_leaves() -> None:
    assert 0 < available_bytes(CPU) <= min([total_bytes(CPU), *(group.free_bytes for group in control_groups())])


def test_a_group_of_the_first_version_is_read_too(tmp_path: Path) -> None:
    files = {"memory.limit_in_bytes": str(8 * GIB), "memory.usage_in_bytes": str(6 * GIB)}
    files["memory.stat"] = f"inactive_file 0\ntotal_inactive_file {3 * GIB}\ntotal_active_file {GIB}"
    for name, text in files.items():
        (tmp_path / name).write_text(f"{text}\n")
    assert (ControlGroup(tmp_path).most_bytes, ControlGroup(tmp_path).free_bytes) == (8 * GIB, 6 * GIB)
    (tmp_path / "memory.limit_in_bytes").write_text("9223372036854771712\n")
    assert ControlGroup(tmp_path).most_bytes == sys.maxsize


def test_the_limit_of_every_group_around_a_process_holds(tmp_path: Path) -> None:
    """A service of systemd lies in a slice that may have a limit of its own."""
    (tmp_path / "own").write_text("5:memory:/\n4:cpu:/elsewhere\n0::/a.slice/b.service\n")
    inner = tmp_path / "a.slice" / "b.service"
    inner.mkdir(parents=True)
    limits = {tmp_path: "max", inner.parent: str(2 * GIB), inner: str(4 * GIB)}
    for folder, most in limits.items():
        group(folder, most)
    found = control_groups(tmp_path, tmp_path / "own")
    assert {each.folder for each in found if each.most_bytes < sys.maxsize} == {inner.parent, inner}
    assert min(each.most_bytes for each in found) == 2 * GIB
    assert control_groups(tmp_path, tmp_path / "no such file") == []
