"""Subblocks and tables in their precision: rounded, scored, written to a GGUF file, and run by llama.cpp."""

from pathlib import Path

import gguf
import pytest
import torch
from conftest import NAMED_PARENT
from parents import logits
from torch import Tensor

from blocklib.activations import ComputedActivations
from blocklib.assemble import assemble, parent_part
from blocklib.block import Architecture, Choice
from blocklib.distil import Progress
from blocklib.errors import NotFiniteError
from blocklib.formats.gguf import as_stored, gguf_bytes, gguf_fixed_bytes, write_gguf, write_random_gguf
from blocklib.formats.gguf_vocabulary import dummy_vocabulary
from blocklib.kind import Weights
from blocklib.parent import Parent
from blocklib.precisions.parts import as_floats, matrix_types, round_part
from blocklib.precisions.round_library import round_parts
from blocklib.precisions.round_model import RoundingText, round_model
from blocklib.tables import table_names
from nas.export.verify_gguf import compare_closely
from nas.scoring.architectures import score_whole
from nas.scoring.fidelity import Fidelity
from nas.scoring.replace_one import score
from nas.stages.evaluate import evaluate

PRECISIONS = ("q8_0", "q5_1", "q4_0", "iq4_nl")


def mixed(parent: Parent, tables: str = " tables@q5_0") -> Architecture:
    """Another precision in each layer, for attention and FFN in opposite order."""
    own = parent.architecture.blocks[0]
    assert hasattr(own, "attention")
    names = [PRECISIONS[index % len(PRECISIONS)] for index in range(parent.shape.layers)]
    blocks = [f"{own.attention}@{one}+{own.ffn}@{other}" for one, other in zip(names, names[::-1], strict=True)]
    return Architecture.parse(" ".join(blocks) + tables)


def own_weights(parent: Parent, part: Choice) -> Weights:
    if part.is_table:
        state = parent.whole().state_dict()
        return {name: state[name] for name in table_names(part.role, parent.shape.tied)}
    return parent_part(parent, part.layer, part.role)


@pytest.fixture(scope="module")
def rounded(trained_parent: Parent, text_ids: Tensor) -> dict[Choice, dict[str, Tensor]]:
    """Every part of `mixed`, rounded."""
    parts = [part for choice in mixed(trained_parent).choices() for part in choice.parts]
    found = round_parts(trained_parent, parts, lambda part: own_weights(trained_parent, part), text_ids[:16], batch=4)
    return dict(found)


def test_every_part_is_rounded_once(trained_parent: Parent, rounded: dict[Choice, dict[str, Tensor]]) -> None:
    assert set(rounded) == set(mixed(trained_parent).choices())
    for part, tensors in rounded.items():
        types = matrix_types(part, trained_parent.shape)
        assert {name for name, tensor in tensors.items() if tensor.dtype == torch.uint8} == set(types)


def test_the_error_is_measured_on_what_enters(
    trained_parent: Parent, text_ids: Tensor, rounded: dict[Choice, dict[str, Tensor]]
) -> None:
    """On text that was not read for it, weights rounded for what enters move the parent less than plain ones."""
    parts = [part for part in rounded if part.precision == "q4_0" and part.role == "ffn"]
    plain = {
        part: round_part(part, own_weights(trained_parent, part), {}, trained_parent.shape, "plain") for part in parts
    }
    kls = [kl_of(trained_parent, parts, held, text_ids[80:112]) for held in (rounded, plain)]
    assert sum(kls[0].values()) < 0.9 * sum(kls[1].values())


def kl_of(
    parent: Parent, parts: list[Choice], held: dict[Choice, dict[str, Tensor]], ids_BT: Tensor
) -> dict[Choice, float]:
    weights = {part: as_floats(part, held[part], parent.shape) for part in parts}
    *_, found = score(parent, weights, ComputedActivations(parent.model, ids_BT))
    assert isinstance(found, dict)
    return {choice: fidelity.kl for choice, fidelity in found.items()}


def test_a_score_is_the_distance_of_the_parent_with_that_part(
    trained_parent: Parent, text_ids: Tensor, rounded: dict[Choice, dict[str, Tensor]]
) -> None:
    """So is the score of tables, which begin and end the model."""
    parent, ids_BT = trained_parent, text_ids[80:88]
    parts = [part for part in rounded if part.layer in (0, parent.shape.layers)]
    by_sweep = kl_of(parent, parts, rounded, ids_BT)
    for part in parts:
        changed = parent.architecture.with_(part)
        child = assemble(parent, changed, lambda asked: as_floats(asked, rounded[asked], parent.shape))
        assert by_sweep[part] == pytest.approx(evaluate(parent.model, child, ids_BT).kl, rel=1e-3, abs=1e-7)


def test_a_whole_architecture_is_scored_with_its_tables(
    trained_parent: Parent, text_ids: Tensor, rounded: dict[Choice, dict[str, Tensor]]
) -> None:
    parent, ids_BT = trained_parent, text_ids[80:88]
    with_tables, without = mixed(parent), mixed(parent, tables="")

    def weights_of(part: Choice) -> Weights:
        return as_floats(part, rounded[part], parent.shape) if part.precision else own_weights(parent, part)

    *_, found = score_whole(parent, [without, with_tables, parent.architecture], weights_of, ids_BT)
    assert not isinstance(found, Progress)
    kls: dict[Architecture, Fidelity] = found
    for architecture in (with_tables, without):
        child = assemble(parent, architecture, weights_of)
        assert kls[architecture].kl == pytest.approx(evaluate(parent.model, child, ids_BT).kl, rel=1e-3)
    assert kls[with_tables].kl > kls[without].kl
    assert kls[parent.architecture].kl == pytest.approx(0, abs=1e-6)


@pytest.fixture(scope="module")
def child(trained_parent: Parent, text_ids: Tensor) -> tuple[object, dict[str, Tensor]]:
    return round_model(trained_parent.whole(), mixed(trained_parent), RoundingText(text_ids[:16], 4))


def test_a_rounded_child_holds_what_its_file_holds(
    trained_parent: Parent, child: tuple[Parent, dict[str, Tensor]], tmp_path: Path
) -> None:
    """Types and bytes by the architecture; the numbers are those of the model in torch, bit for bit."""
    model, stored = child
    architecture, shape = mixed(trained_parent), trained_parent.shape
    write_gguf(tmp_path / "mixed.gguf", model, "f16", dummy_vocabulary(shape.vocabulary), stored=stored)
    file = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "mixed.gguf").tensors}
    for index, (_, block) in enumerate(architecture.placed()):
        types = {name: file[f"blk.{index}.{name}.weight"].tensor_type.name.lower() for name in ("attn_v", "ffn_up")}
        assert types == {"attn_v": block.attention.precision, "ffn_up": block.ffn.precision}
    assert file["token_embd.weight"].tensor_type.name == "Q5_0"
    sizes = [gguf_bytes(choice, shape, "f16") for choice in architecture.choices() if not choice.is_table]
    assert sum(tensor.n_bytes for tensor in file.values()) == sum(sizes) + gguf_fixed_bytes(shape, "q5_0", True)
    held = dict.fromkeys((*PRECISIONS, "q5_0"), 0)
    for part in architecture.choices():
        whole = gguf_fixed_bytes(shape, "q5_0", True) if part.is_table else gguf_bytes(part, shape, "f16")
        held[part.precision] += whole
    written = gguf.GGUFReader(tmp_path / "mixed.gguf").fields["general.file_type"].contents()
    assert gguf.LlamaFileType(written).name == f"MOSTLY_{max(held, key=lambda name: held[name]).upper()}"
    values = gguf.dequantize(file["blk.1.ffn_down.weight"].data, file["blk.1.ffn_down.weight"].tensor_type)
    assert torch.equal(torch.from_numpy(values), model.state_dict()["model.layers.1.mlp.down_proj.weight"])
    again = as_stored(model, "f16", stored).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    write_random_gguf(tmp_path / "random.gguf", trained_parent.model.config, architecture, "f16")
    random = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(tmp_path / "random.gguf").tensors}
    assert random == {name: tensor.tensor_type for name, tensor in file.items()}


def test_llama_cpp_is_as_near_to_a_mixed_child_as_to_a_uniform_one(
    trained_parent: Parent, child: tuple[Parent, dict[str, Tensor]], tmp_path: Path
) -> None:
    """The engine rounds what enters a matrix, at 8 bits for each of these types. So it may be as far from the mixed
    child in torch as it is from a uniform q8_0 one, and a little more where weights are coarser."""
    pytest.importorskip("xllamacpp")
    model, stored = child
    vocabulary = dummy_vocabulary(trained_parent.shape.vocabulary)
    write_gguf(tmp_path / "mixed.gguf", model, "f16", vocabulary, stored=stored)
    write_gguf(tmp_path / "uniform.gguf", trained_parent.whole(), "q8_0", vocabulary)
    far = compare_closely(tmp_path / "mixed.gguf", as_stored(model, "f16", stored), vocabulary, None)
    uniform = compare_closely(tmp_path / "uniform.gguf", as_stored(trained_parent.whole(), "q8_0"), vocabulary, None)
    assert far.kl <= 4 * uniform.kl + 1e-4, f"{NAMED_PARENT.name}: {far} against {uniform}"


def test_the_unrounded_child_is_not_changed(trained_parent: Parent, text_ids: Tensor) -> None:
    before = logits(trained_parent.model, text_ids[:2])
    round_model(trained_parent.whole(), mixed(trained_parent), RoundingText(text_ids[:4], 2), how="diagonal")
    assert torch.equal(before, logits(trained_parent.model, text_ids[:2]))


def test_nan_is_an_error_that_names_the_part_and_the_tensor(trained_parent: Parent, text_ids: Tensor) -> None:
    part = Choice.parse(f"L1.ffn={trained_parent.architecture.choices()[1].what}@q4_0")
    broken = {name: tensor.clone() for name, tensor in own_weights(trained_parent, part).items()}
    broken["mlp.up_proj.weight"][3, 40] = float("nan")
    with pytest.raises(NotFiniteError, match=r"L1\.ffn=.*@q4_0: mlp\.up_proj\.weight.*row 3"):
        round_part(part, broken, {}, trained_parent.shape, "plain")
