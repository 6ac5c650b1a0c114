"""The commands that run exports in the engines that serve them. `nas/cli/main.py` registers them."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.table import Table

import nas
from nas.cli.arguments import AsJson, Db
from nas.cli.printed import print_json, print_whole
from nas.terminal.console import console, talk_beside
from nas.terminal.signals import SIGNALS

if TYPE_CHECKING:
    from nas.serving.bench import EngineBench, Figure, SideBySide

_COLUMNS = {
    "file_bytes": "weights file",
    "peak_bytes": "peak memory",
    "prefill_tokens_per_s": "prefill tok/s",
    "decode_tokens_per_s": "decode tok/s",
    "latency_s": "latency s",
}
_BUSY = 0.25


@dataclass(frozen=True)
class BenchRequest:
    """The arguments of `nas bench`."""

    children: list[str]
    parent: str | None
    load: dict[str, int | str | None]
    engine: str | None
    db: str | None
    as_json: bool


def bench(
    children: Annotated[
        list[str],
        typer.Argument(
            help="A trial's number, a search's name (its last built trial), an exported folder, or a .gguf file.",
            metavar="CHILD",
        ),
    ],
    parent: Annotated[
        str | None,
        typer.Option(help="embedded, a checkpoint's folder, a hub id or a .gguf file. Default: the first trial's."),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 1,
    prompt: Annotated[int, typer.Option(min=1, help="Tokens of each prompt.")] = 128,
    generate: Annotated[int, typer.Option(min=1, help="Tokens of each answer.")] = 128,
    threads: Annotated[int | None, typer.Option(min=1, help="Threads of the engine. Default: all cores.")] = None,
    engine: Annotated[
        Literal["torch", "torch_compile", "vllm", "llama_cpp"] | None,
        typer.Option(help="torch, torch_compile and vllm run folders, llama_cpp .gguf files. Default: a trial's own."),
    ] = None,
    device: Annotated[str, typer.Option(help="Where they run: cpu, cuda, cuda:1.")] = "cpu",
    kv_cache: Annotated[
        str | None, typer.Option(help="Type of llama.cpp's keys and values: f16, q8_0 ... Default: a trial's own.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=2, help="Times that each model runs, in turns.")] = 9,
    db: Db = None,
    as_json: AsJson = False,
) -> None:
    """Time parent and children side by side in their engines: tokens per second, latency, memory.

    A trial is timed beside its parent. For llama_cpp, what has no GGUF file yet is exported first.

    Example: nas bench 3 --engine llama_cpp
    """
    _bench(
        BenchRequest(
            children,
            parent,
            {
                "batch": batch,
                "prompt_tokens": prompt,
                "generated_tokens": generate,
                "threads": threads,
                "rounds": rounds,
                "device": device,
                "kv_cache": kv_cache,
            },
            engine,
            db,
            as_json,
        )
    )


def _bench(asked: BenchRequest) -> None:
    found = nas.bench(
        asked.children,
        parent=asked.parent,
        load=asked.load,
        engine=asked.engine,
        db=asked.db,
        progress=talk_beside(asked.as_json),
    )
    if asked.as_json:
        print_json(asdict(found))
        return
    print_bench(found)


def print_bench(found: "SideBySide") -> None:
    """A table for each engine: a line for each model, and below it how it stands to the first."""
    load = found.load
    for group in found.engines:
        console.print(
            f"\n{group.version}, {group.threads} threads: batch {load.batch}, prompt {load.prompt_tokens}, generated "
            f"{load.generated_tokens}; {load.rounds} rounds in turns",
            soft_wrap=True, highlight=False,
        )  # fmt: skip
        print_whole(_table(group))
        if group.contention > _BUSY:
            console.print(
                f"caution: other programs took {group.contention:.0%} of the cores meanwhile; time again when the "
                "machine is idle",
                soft_wrap=True, highlight=False,
            )  # fmt: skip
    console.print("±: the deviation of a single round; of a ratio, its standard error", style="dim", soft_wrap=True)
    for note in found.notes:
        console.print(note, soft_wrap=True, highlight=False)


def _table(group: "EngineBench") -> Table:
    first = group.lines[0]
    columns = [name for name in _COLUMNS if name in first.figures]
    table = Table("", "weights", box=None)
    for name in columns:
        table.add_column(_COLUMNS[name], justify="right", no_wrap=True)
    for line in group.lines:
        kept = f", keys and values in {line.kv_cache}" if line.kv_cache else ""
        table.add_row(line.name, f"{line.weights}{kept}", *(_value(name, line.figures[name]) for name in columns))
        if line is not first:
            table.add_row("", f"to {first.name}", *(_ratio(line.figures[name]) for name in columns))
    return table


def _value(name: str, figure: "Figure") -> str:
    if name.endswith("_bytes"):
        return f"{figure.value / 2**20:,.1f} MiB"
    places = 4 if name == "latency_s" else 1
    return f"{figure.value:,.{places}f} ± {figure.deviation:,.{places}f}"


def _ratio(figure: "Figure") -> str:
    return f"{figure.ratio:.1%}" + ("" if figure.error is None else f" ± {figure.error:.1%}")


def serve(
    model: Annotated[
        str,
        typer.Argument(help="A trial's number, a search's name, a folder that was exported, or a .gguf file."),
    ],
    host: Annotated[str, typer.Option(help="The address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen at.")] = 8080,
    engine: Annotated[
        Literal["llama_cpp", "vllm"] | None,
        typer.Option(
            help="llama_cpp serves .gguf files, vllm folders. Default: what the model is; of a trial, llama_cpp."
        ),
    ] = None,
    db: Db = None,
) -> None:
    """Start the engine's own OpenAI-compatible server on an export, until Ctrl-C.

    A trial that has no GGUF file yet is exported first.

    Example: nas serve 3 --port 8080
    """
    try:
        with nas.serve(model, host=host, port=port, engine=engine, db=db, progress=console) as server:
            console.print(f"{server.name} in {server.engine} at {server.address}", soft_wrap=True, highlight=False)
            console.print(f"{server.curl}", soft_wrap=True, highlight=False)
            console.print("Ctrl-C ends it.", style="dim")
            server.wait()
    except KeyboardInterrupt:
        SIGNALS.answer()
        console.print("the server has ended")
