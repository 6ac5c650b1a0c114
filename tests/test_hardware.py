"""The memory that this machine, and a control group on it, have left."""

import sys
from pathlib import Path

import torch

from cost_models.hardware import ControlGroup, available_bytes, total_bytes

GIB = 2**30
CPU = torch.device("cpu")


def group(folder: Path, most: str) -> ControlGroup:
    """The files that Linux has of a group that holds 6 GiB, 3 of them files that were read once."""
    files = {"memory.max": most, "memory.current": str(6 * GIB)}
    files["memory.stat"] = f"anon {2 * GIB}\nfile {4 * GIB}\ninactive_file {3 * GIB}\nactive_file {GIB}"
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")
    return ControlGroup(folder)


def test_a_control_group_leaves_its_limit_less_what_it_holds(tmp_path: Path) -> None:
    limited = group(tmp_path, str(8 * GIB))
    assert limited.most_bytes == 8 * GIB
    assert limited.free_bytes == 5 * GIB
    assert group(tmp_path, str(2 * GIB)).free_bytes == 0


def test_a_group_without_a_limit_takes_nothing_away(tmp_path: Path) -> None:
    for none in (ControlGroup(tmp_path / "no such folder"), group(tmp_path, "max")):
        assert none.most_bytes == none.free_bytes == sys.maxsize


def test_this_machine_has_no_more_free_than_its_group_leaves() -> None:
    assert 0 < available_bytes(CPU) <= min(total_bytes(CPU), ControlGroup().free_bytes)
