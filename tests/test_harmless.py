"""Files that would take a machine down, or over, if they were believed: each is refused in a line, and nothing of it
runs."""

import json
import pickle
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from searches import Here, parent_folder, the_error

from blocklib.parent import load_parent
from db.store import Store
from nas.errors import JobError, TableError
from nas.job.config import load, parse
from nas.tables.read import parse as parse_table

JOB = "parent: embedded\ndata: {train: stdlib}\nbudget: {latency: 60%}\n"
LEVELS = "abcdefghij"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in pairwise(LEVELS)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[" * 5000, "job.yaml, line 1: nested more than 50 deep"),
        (f"{JOB}x: {'[' * 5000}{']' * 5000}", "job.yaml, line 4: nested more than 50 deep"),
        (f"{JOB}x: {'{a: ' * 5000}", "job.yaml, line 4: nested more than 50 deep"),
        ("- " * 5000 + "a", "job.yaml, line 1: nested more than 50 deep"),
        ("\n".join(f"{' ' * depth}a:" for depth in range(5000)), "job.yaml, line 51: nested more than 50 deep"),
        (BOMB + JOB, r"job.yaml: its aliases \(\*name\) stand for more than 100,000 values"),
        (f"{JOB}x: &a [*a]\n", r"job.yaml: its aliases \(\*name\) stand for more than 100,000 values"),
        (f"{JOB}x: &a {{b: *a}}\n", r"job.yaml: its aliases \(\*name\) stand for more than 100,000 values"),
        (
            f"{JOB}scenario: {{batch: 1{'0' * 5000}}}\n",
            r"job.yaml, line 4: 10+\.\.\. \(5001 characters\) is not a valid int$",
        ),
        (f"{JOB}name: 2026-13-45\n", "job.yaml, line 4: 2026-13-45 is not a valid timestamp$"),
        (f"{JOB}name: !!bool perhaps\n", "job.yaml, line 4: perhaps is not a valid bool$"),
        (f"{JOB}name: !!timestamp noon\n", "job.yaml, line 4: noon is not a valid timestamp$"),
        (f"{JOB}name: !!float x\n", "job.yaml, line 4: x is not a valid float$"),
        (
            f"{JOB}scenario: {{batch: {list(range(9999))}}}\n",
            r"job.yaml: scenario\.batch: .*\.\.\. \(\d+ characters\)$",
        ),
        ("\0", "job.yaml: unacceptable character #x0000: special characters are not allowed"),
    ],
    ids=range(15),
)
def test_a_job_that_would_fill_the_stack_or_the_memory(text: str, said: str) -> None:
    with pytest.raises(JobError, match=said) as error:
        parse(text, "job.yaml")
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 1000


def test_what_a_job_repeats_by_name_it_may() -> None:
    text = f"{JOB}space: {{attention: &some [kv50%, skip], ffn: [50%, skip]}}\nexport: {{format: hf}}\n"
    assert parse(text, "job.yaml").space.attention
    nested = "x: " + "[" * 45 + "]" * 45
    with pytest.raises(JobError, match="x: unknown key"):
        parse(JOB + nested, "job.yaml")


def test_no_job_runs_code(tmp_path: Path) -> None:
    ran = tmp_path / "ran"
    for tag in ("python/object/apply:os.system", "python/object/new:os.system", "python/name:os.system"):
        (tmp_path / "job.yaml").write_text(f"{JOB}x: !!{tag} ['touch {ran}']\n")
        with pytest.raises(JobError, match=r"line 4: could not determine a constructor for the tag"):
            load(tmp_path / "job.yaml")
    assert not ran.exists()


class Evil:
    """Runs a command when it is unpickled."""

    def __init__(self, ran: Path):
        self._ran = ran

    def __reduce__(self) -> tuple[object, ...]:
        return open, (str(self._ran), "w")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "training_args.bin", "optimizer.pt"])
def test_no_parent_runs_code(tmp_path: Path, name: str) -> None:
    folder, ran = tmp_path / "parent", tmp_path / "ran"
    folder.mkdir()
    for path in parent_folder().iterdir():
        if name != "pytorch_model.bin" or path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    (folder / name).write_bytes(pickle.dumps({"model.norm.weight": Evil(ran)}))
    pickle.loads((folder / name).read_bytes())
    assert ran.exists(), "it would"
    ran.unlink()
    with suppress(Exception):  # how it is refused is another test's
        load_parent(str(folder))
    assert not ran.exists()


@pytest.mark.parametrize("depth", [5000, 100_000])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")])
def test_a_table_that_would_fill_the_stack(depth: int, opening: str, closing: str) -> None:
    inner = opening * depth + "1" + closing * depth
    for table in (inner, f'{{"layer_0": {{"ffn": {inner}}}}}', f'{{"slots": 1, "options": [{inner}]}}'):
        with pytest.raises(TableError, match=r"^table\.json"):
            parse_table(table, "table.json")


def test_huge_numbers_of_trials_are_those_of_none(here: Here, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    Store.open(tmp_path / "home/nas.db").close()
    for arguments in (["show", str(10**26)], ["export", str(2**63), "--out", tmp_path / "out"]):
        done = here(tmp_path / "home", *arguments)
        assert done.returncode == 1
        assert the_error(done.stderr) == f"error: no trial has the id {arguments[1]}"
    assert json.loads(here(tmp_path / "home", "trials", "--limit", str(10**26), "--json").stdout) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["pareto", "s", "--points", str(10**26)],
        ["solve", "s", "--budget", "latency=50%", "--refine", str(10**26)],
        ["compare", "s", "--seeds", str(10**9)],
        ["compare", "s", "--evaluations", str(10**26)],
    ],
    ids=" ".join,
)
def test_numbers_that_would_run_for_ever_are_refused(here: Here, tmp_path: Path, arguments: list[str]) -> None:
    done = here(tmp_path, *arguments)
    assert done.returncode == 2
    assert "Input should be less than or equal to" in done.stderr
