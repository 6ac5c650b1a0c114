"""Models timed side by side in their engines, and served by them. Nothing here says how fast anything is."""

import json
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.request import Request, urlopen

import psutil
import pytest
from rows import trial
from searches import Here, parent_folder, started, stop_group, wait_for
from small_costs import config_for_engines

import nas
from blocklib.block import Architecture
from blocklib.errors import CheckpointError, MissingCheckpointError
from blocklib.formats.gguf import write_random_gguf
from cost_models.errors import EngineStoppedError, MissingEngineError, ScenarioError
from cost_models.scenario import Scenario
from nas.errors import MissingFileError, UsageError
from nas.serving.of_trial import export_format
from nas.serving.torch_folder import TorchFolder, weight_bytes

HOUSE = Path(__file__).parents[1]
LOAD = {"batch": 2, "prompt_tokens": 5, "generated_tokens": 4, "threads": 1, "rounds": 2}
TIMES = ["prefill_tokens_per_s", "decode_tokens_per_s", "latency_s"]
MEMORY = ["file_bytes", "peak_bytes"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with parent.gguf and two children."""
    folder = tmp_path_factory.mktemp("files")
    config = config_for_engines()
    for name, spelling in {"parent": " ".join(["kv2+ffn96"] * 4), "one": "kv1+ffn32", "two": "skip+ffn96"}.items():
        write_random_gguf(folder / f"{name}.gguf", config, Architecture.parse(spelling), "q8_0")
    return folder


def test_files_take_turns_in_llama_cpp(files: Path) -> None:
    children = [files / "one.gguf", str(files / "two.gguf")]
    found = nas.bench(children, parent=files / "parent.gguf", load=LOAD, progress=False)
    (group,) = found.engines
    assert (group.engine, group.threads) == ("llama_cpp", 1)
    assert [line.name for line in group.lines] == ["parent", "one", "two"]
    for line in group.lines:
        assert list(line.figures) == [*MEMORY, *TIMES]
        assert all(figure.value > 0 for figure in line.figures.values())
        assert all((line.figures[name].error is None) == (name in MEMORY) for name in line.figures)
        assert line.weights == "q8_0"
        assert line.figures["file_bytes"].value == Path(line.path).stat().st_size
    first, one, _ = group.lines
    assert {figure.ratio for figure in first.figures.values()} == {1.0}
    assert one.figures["file_bytes"].ratio == Path(one.path).stat().st_size / Path(first.path).stat().st_size
    assert found.notes == ()


def test_one_token_has_no_decode_steps(files: Path) -> None:
    found = nas.bench([files / "one.gguf"], load=LOAD | {"generated_tokens": 1}, progress=False)
    assert list(found.engines[0].lines[0].figures) == [*MEMORY, "prefill_tokens_per_s", "latency_s"]


def test_no_ratio_spans_two_engines(files: Path) -> None:
    found = nas.bench([files / "one.gguf", parent_folder()], load=LOAD, progress=False)
    assert [(group.engine, len(group.lines)) for group in found.engines] == [("llama_cpp", 1), ("torch", 1)]
    assert all(figure.ratio == 1 for group in found.engines for figure in group.lines[0].figures.values())
    assert "no ratio between them" in found.notes[0]


def test_a_folder_that_memory_does_not_hold_beside_others_takes_turns() -> None:
    subject = TorchFolder(parent_folder(), Scenario("cpu", "float32", 1, 5, 4, 1), stays=False)
    assert subject.prefill() > 0
    before = subject.used_s()
    assert subject.decode() > 0
    assert subject.used_s() > before > 0
    assert subject.peak_bytes() > 0
    assert not psutil.Process().children()


def test_a_folder_whose_process_is_killed_between_two_passes_is_an_error_that_says_so() -> None:
    subject = TorchFolder(parent_folder(), Scenario("cpu", "float32", 1, 5, 4, 1), stays=True)
    assert subject.prefill() > 0
    before = subject.used_s(), subject.peak_bytes()
    (process,) = psutil.Process().children()
    process.kill()
    with pytest.raises(EngineStoppedError, match="torch ended with status -9"):
        subject.prefill()
    subject.close()
    assert (subject.used_s(), subject.peak_bytes()) == before > (0, 0)


def test_a_folder_that_torch_does_not_load_is_an_error_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "some-model", "auto_map": {"AutoConfig": "a.B"}}')
    with pytest.raises(MissingCheckpointError, match="holds no weights"):
        nas.bench([tmp_path], load=LOAD, progress=False)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(EngineStoppedError, match=r"torch ended with status 1 on .*custom code"):
        nas.bench([tmp_path], load=LOAD, progress=False)


def test_what_cannot_be_timed_is_refused_in_words(files: Path, tmp_path: Path) -> None:
    def bench(child: str | Path, engine: str | None = None) -> None:
        nas.bench([child], load=LOAD, engine=engine, db=tmp_path / "nas.db", progress=False)

    (tmp_path / "none.gguf").write_bytes(b"nothing of a model")
    with pytest.raises(CheckpointError, match="is no GGUF file"):
        bench(tmp_path / "none.gguf")
    whole = (files / "one.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="is cut"):
        bench(tmp_path / "cut.gguf")
    with pytest.raises(MissingFileError, match="is not there"):
        bench(tmp_path / "gone.gguf")
    with pytest.raises(UsageError, match=r"neither config\.json nor a \.gguf file"):
        bench(HOUSE / "docs")
    with pytest.raises(UsageError, match="which runs in llama_cpp here, not in torch"):
        bench(files / "one.gguf", "torch")
    with pytest.raises(UsageError, match="2 or more"):
        nas.bench([files / "one.gguf"], load={"rounds": 1}, progress=False)
    with pytest.raises(UsageError, match=r"llama_cpp is timed on cpu here, not on cuda: give --device"):
        nas.bench([files / "one.gguf"], load={"device": "cuda"}, progress=False)
    with pytest.raises(ScenarioError, match="device 'gpu' is not one of torch's"):
        nas.bench([files / "one.gguf"], load={"device": "gpu"}, progress=False)


def test_a_folder_needs_vllm_and_the_commands_to_type_are_given(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter that is named has no vLLM, whatever stands here."""
    monkeypatch.setenv("NAS_VLLM_PYTHON", "/usr/bin/false")
    with (
        pytest.raises(MissingEngineError, match=r"NAS_VLLM_PYTHON is /usr/bin/false"),
        nas.serve(parent_folder(), port=free_port()),
    ):
        pass


def test_the_parent_stays_first_if_it_is_named_among_the_children(files: Path) -> None:
    children = [files / f"{name}.gguf" for name in ("one", "parent")]
    (group,) = nas.bench(children, parent=files / "parent.gguf", load=LOAD, progress=False).engines
    assert [line.name for line in group.lines] == ["parent", "one"]


@pytest.mark.parametrize(
    ("written", "format"),
    [("gguf", "gguf"), ("gguf-q4_0", "gguf"), ("hf", "hf"), ("hf-bfloat16", "hf"), ("decilm", "decilm"), (None, "")],
)
def test_the_format_of_an_export_is_known_whatever_its_precision(written: str | None, format: str) -> None:
    assert export_format(trial(details={"export_format": written})) == format


def test_the_weights_of_a_folder_are_the_files_that_a_model_reads(tmp_path: Path) -> None:
    for name, size in (("model.safetensors", 100), ("pytorch_model.bin", 70), ("training_args.bin", 5)):
        (tmp_path / name).write_bytes(bytes(size))
    assert weight_bytes(tmp_path) == 100


def test_a_port_and_threads_that_do_not_exist_are_refused(files: Path) -> None:
    with (
        pytest.raises(UsageError, match="port 0 does not exist; give one from 1 to 65535"),
        nas.serve(files / "one.gguf", port=0, progress=False),
    ):
        pass
    with pytest.raises(ScenarioError, match="threads"):
        nas.bench([files / "one.gguf"], load={**LOAD, "threads": 0}, progress=False)


def test_a_server_that_does_not_fit_is_refused_in_words(files: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(UsageError, match=f"port {port}: .*in use; give another --port"),
            nas.serve(files / "one.gguf", port=port),
        ):
            pass
    with (
        pytest.raises(UsageError, match="which llama_cpp serves, not vllm"),
        nas.serve(files / "one.gguf", engine="vllm", port=free_port()),
    ):
        pass


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as asked:
        return int(asked.getsockname()[1])


def commands() -> list[list[str]]:
    """Every `$ nas ...` of the page."""
    text = (HOUSE / "docs/serving.md").read_text(encoding="utf-8")
    words = {"3": "1", "DIR": "child", "8080": str(free_port())}
    return [[words.get(word, word) for word in shlex.split(line)] for line in re.findall(r"\$ nas (.*)", text)]


def test_the_commands_of_the_page_run(here: Here, copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copy)
    home = copy / "home"
    assert here(home, "export", "1", "--out", "child").returncode == 0
    trial, folder, server = commands()
    quick = ("--rounds", "2", "--prompt", "8", "--generate", "4", "--threads", "1")

    done = here(home, *trial, *quick)
    assert done.returncode == 0, done.stderr
    assert "llama.cpp of xllamacpp" in done.stdout
    assert "to parent" in done.stdout
    exported = sorted(path.relative_to(home / "exports") for path in home.glob("exports/*/gguf-q8_0/*.gguf"))
    assert len(exported) == 2  # The trial's is beside its folder in the search's own format.
    written = {path: (home / "exports" / path).stat().st_mtime_ns for path in exported}
    again = here(home, "bench", "tiny", "--engine", "llama_cpp", *quick, "--json")
    assert {path: (home / "exports" / path).stat().st_mtime_ns for path in exported} == written
    lines = json.loads(again.stdout)["engines"][0]["lines"]
    assert [(line["name"], Path(line["path"]).suffix) for line in lines] == [("parent", ".gguf"), ("trial 1", ".gguf")]

    done = here(home, *folder)
    assert done.returncode == 0, done.stderr
    (group,) = json.loads(done.stdout)["engines"]
    assert [(line["name"], line["weights"]) for line in group["lines"]] == [("parent", "float32"), ("child", "float32")]

    served_and_asked(home, server, signal.SIGINT)


def served_and_asked(home: Path, command: Sequence[str], sent: signal.Signals) -> None:
    running = started(home, *command)
    try:
        (curl,) = re.findall(r"^curl .*$", wait_for(running, "Ctrl-C ends it"), re.MULTILINE)
        asked = subprocess.run(shlex.split(curl), capture_output=True, text=True, check=True)
        (choice,) = json.loads(asked.stdout)["choices"]
        assert choice["message"]["content"] if "/v1/chat/completions" in curl else choice["text"]
        url = shlex.split(curl)[1].replace("/chat", "")
        question = json.dumps({"prompt": "def", "max_tokens": 3, "temperature": 0}).encode()
        with urlopen(Request(url, question, {"Content-Type": "application/json"})) as answer:
            assert json.load(answer)["usage"]["completion_tokens"] == 3
    finally:
        rest = stop_group(running, sent)
    assert running.returncode == 0
    assert "the server has ended" in rest


def test_a_mistake_on_the_command_line_is_one_line(mistake: Callable[[Sequence[str | Path]], str]) -> None:
    assert "is no file or folder here, and no trial or search" in mistake(["bench", "unknown"])
    assert "is not there" in mistake(["serve", "gone.gguf"])
