"""The engine torch_compile: each kind of subblock gives the logits of the eager model, or is refused."""

from dataclasses import replace

import pytest
import torch
from small_costs import config_for_engines

from blocklib.block import SKIP, Architecture, Block, Choice, Subblock
from blocklib.kinds import ATTENTION, FFN, kind_of
from blocklib.model import PuzzleNasConfig
from blocklib.parent import own_shape
from cost_models.engines.torch_compile import CompiledSubject, TorchCompile
from cost_models.engines.torch_eager import new_cache, random_model
from cost_models.errors import MissingEngineError, UnsupportedByEngineError
from cost_models.scenario import Scenario

SCENARIO = Scenario("cpu", "float32", batch=1, prompt_tokens=6, generated_tokens=4, threads=1, engine="torch_compile")
ENGINE = TorchCompile()
SIZES = {
    "kv": "1", "window": "4", "ffn": "48", "dip": "50", "dip_threshold": "50", "moe": "4x24k2", "sigma_moe": "4x24k2",
    "topk": "10", "pkm": "4x2k2", "pkm_softmax": "4x2k2", "fff": "2x24", "ultra": "2x2", "fuse": "(ffn16,ffn16)",
    "fuse_last": "(ffn16,ffn16)",
}  # fmt: skip
"""A small size of each kind that has one."""
REFUSED = {"dip", "dip_threshold", "moe", "sigma_moe", "topk", "fff"}
COMPILED = [
    *(("attention", kind) for kind in ATTENTION if kind != "skip"),
    *(("ffn", kind) for kind in FFN if kind not in REFUSED | {"skip", "fuse_last"}),
]
"""A fused run is one wide FFN in either spelling."""


@pytest.fixture(scope="module")
def config() -> PuzzleNasConfig:
    return config_for_engines()


def spelled(kind: str) -> Subblock:
    return Subblock.parse(f"{kind}{SIZES.get(kind, '')}")


def test_every_kind_is_compiled_or_refused() -> None:
    assert {kind for _, kind in COMPILED} | REFUSED | {"skip", "fuse_last"} == {*ATTENTION, *FFN}


def test_kinds_give_the_logits_of_the_eager_model(config: PuzzleNasConfig) -> None:
    """All in one model, prefill and decode; `fullgraph` raises where one breaks the graph."""
    blocks = tuple(
        Block(spelled(kind), SKIP) if role == "attention" else Block(SKIP, spelled(kind)) for role, kind in COMPILED
    )
    for (role, _), block in zip(COMPILED, blocks, strict=True):
        part = block.attention if role == "attention" else block.ffn
        kind_of(role, part).check(part, own_shape(config))  # type: ignore[arg-type]
        ENGINE.check([Choice(0, "block", block)], config, SCENARIO)
    architecture = Architecture(blocks)
    eager = random_model(config, architecture, SCENARIO)
    ids_BT, seen = torch.arange(SCENARIO.prompt_tokens)[None], SCENARIO.prompt_tokens
    with ENGINE.random(config, architecture, SCENARIO) as model, torch.inference_mode():
        subject, cache = CompiledSubject(model, SCENARIO), new_cache(eager)
        for given_BT, before in ((ids_BT, 0), (ids_BT[:, :1], seen), (ids_BT[:, 1:2], seen + 1)):
            expected = eager(input_ids=given_BT, cache=cache, use_cache=True, logits_to_keep=1).logits
            torch.testing.assert_close(subject.logits(given_BT, before), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_kinds_that_break_a_graph_are_refused_with_the_reason(config: PuzzleNasConfig, kind: str) -> None:
    why = "depends on the tokens|operation that torch.compile does not know"
    choice = Choice(1, "ffn", spelled(kind))
    with pytest.raises(UnsupportedByEngineError, match=rf"cannot run L1\.ffn={kind}.*({why})"):
        ENGINE.check([choice], config, SCENARIO)


@pytest.mark.parametrize("kind", sorted(REFUSED))
def test_they_do_break_it(config: PuzzleNasConfig, kind: str) -> None:
    """In the prefill, or in the decode step. Were one of them captured, it should no longer be refused."""
    architecture = Architecture((Block(SKIP, spelled(kind)),))
    with ENGINE.random(config, architecture, SCENARIO) as model, torch.inference_mode():
        subject = CompiledSubject(model, SCENARIO)
        with pytest.raises(Exception, match=r"(?i)graph|trace|fake tensor|data-dependent|skipped"):
            _ = subject.prefill() + subject.decode()


def test_layers_of_the_same_sizes_are_compiled_once(config: PuzzleNasConfig) -> None:
    block = Block(Subblock("kv", "2"), Subblock("ffn", "40"))
    counted = torch._dynamo.utils.counters["stats"]
    with torch.inference_mode():
        before = counted["unique_graphs"]
        for layers in (3, 5):
            with ENGINE.random(config, Architecture((block,) * layers), SCENARIO) as model:
                CompiledSubject(model, SCENARIO).prefill()
        assert counted["unique_graphs"] == before + 1


def test_without_a_compiler_it_says_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(MissingEngineError, match=r"needs a C\+\+ compiler.*run: apt-get install g\+\+"):
        ENGINE.check_installed()


def test_devices_without_graphs_are_refused(config: PuzzleNasConfig) -> None:
    with pytest.raises(UnsupportedByEngineError, match="runs on cpu and cuda, not on mps"):
        ENGINE.check([], config, replace(SCENARIO, device="mps"))
