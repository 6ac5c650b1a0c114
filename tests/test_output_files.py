"""The files that commands write: whole or not at all, and never in place of something that is no file."""

import os
from pathlib import Path
from threading import Thread

import pytest
from searches import Here, rows

from nas.errors import UsageError
from nas.files.output import check_output, image_format, write_whole


def test_a_file_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "new/report.html"
    write_whole(path, b"first")
    write_whole(path, b"second")
    assert path.read_bytes() == b"second"
    assert [each.name for each in path.parent.iterdir()] == ["report.html"]


def test_a_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    target, link = tmp_path / "target.html", tmp_path / "link.html"
    target.write_text("old")
    link.symlink_to(target.name)
    write_whole(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_a_pipe_stays_and_is_written_into(tmp_path: Path) -> None:
    pipe, heard = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = Thread(target=lambda: heard.append(pipe.read_bytes()))
    reader.start()
    write_whole(pipe, b"page")
    reader.join(timeout=60)
    assert heard == [b"page"]
    assert pipe.is_fifo()


@pytest.mark.parametrize("name", [".", "", "folder"])
def test_a_folder_is_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    for write in (check_output, lambda path: write_whole(path, b"")):
        with pytest.raises(UsageError, match="is a folder; name a file in it"):
            write(Path(name))


def test_a_file_for_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"file/page\.html: .*file is a file, not a folder"):
        write_whole(tmp_path / "file/page.html", b"")


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Not the file beside it, of which nobody has heard."""
    path = tmp_path / ("x" * 300)
    with pytest.raises(OSError, match=r"x{300}") as error:
        write_whole(path, b"")
    assert "partial" not in str(error.value)


@pytest.mark.parametrize("name", ["front.pdf", "front", "front.svg.gz"])
def test_other_pictures_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"give a file that ends in \.svg or \.png"):
        image_format(Path(name))


def test_a_command_looks_before_it_works(copy: Path, here: Here) -> None:
    plot = ("--plot", copy)
    for line in (["report", "tiny", "--out", copy], ["pareto", "tiny", *plot], ["compare", "tiny", *plot]):
        done = here(copy / "home", *line)
        assert done.returncode == 2, done.stderr
        assert done.stdout == ""


def test_no_search_is_not_every_search(copy: Path, here: Here) -> None:
    """As where a variable of a script is empty."""
    before = rows(copy / "home", "trial")
    assert before
    done = here(copy / "home", "trials", "", "--delete", "--yes")
    assert done.returncode == 1
    assert "no search ''" in done.stderr
    assert rows(copy / "home", "trial") == before
