"""A plain export through llama.cpp's own converter, which knows nothing of this package.

The converter comes with llama.cpp's source, not with a package that can be installed, and needs `sentencepiece`.
`PUZZLE_NAS_CONVERTER` names its `convert_hf_to_gguf.py`. Without it the test is skipped. `PUZZLE_NAS_PARENT` may
name a parent.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import EMBEDDED, NAMED_PARENT
from parents import FAMILIES, child_of, random_model
from test_gguf_export import sentencepiece
from transformers import AutoTokenizer

from blocklib.parent import load_parent
from nas.export.gguf_tokenizer import vocabulary_of
from nas.export.parent_settings import settings_of
from nas.export.plain import export_plain
from nas.export.verify_gguf import compare_exactly

CONVERTER = os.environ.get("PUZZLE_NAS_CONVERTER", "")


@pytest.fixture
def parent(tmp_path: Path) -> Path:
    """The one that the environment names, else a random one: the converter knows tokenizers by a list of its own."""
    if NAMED_PARENT != EMBEDDED:
        return NAMED_PARENT
    tokenizer = sentencepiece()
    sizes = {"hidden_size": 64, "head_dim": 16, "num_attention_heads": 4, "max_position_embeddings": 128}
    config = FAMILIES["llama"](vocab_size=len(tokenizer), attention_bias=False, mlp_bias=False, **sizes)
    random_model(config).save_pretrained(tmp_path / "parent")
    tokenizer.save_pretrained(tmp_path / "parent")
    return tmp_path / "parent"


@pytest.mark.skipif(not CONVERTER, reason="PUZZLE_NAS_CONVERTER names no convert_hf_to_gguf.py")
def test_llama_cpp_converts_a_plain_child_and_computes_the_same(parent: Path, tmp_path: Path) -> None:
    loaded, tokenizer = load_parent(str(parent)), AutoTokenizer.from_pretrained(parent)
    block = f"kv{loaded.shape.kv_heads}+ffn{loaded.shape.ffn_width // 2}"
    child = child_of(loaded, " ".join([block, "skip+skip", *[block] * (loaded.shape.layers - 2)])).float()
    export_plain(child, tokenizer, tmp_path / "child", "# A child", settings_of(str(parent)))

    file = tmp_path / "child.gguf"
    command = [sys.executable, CONVERTER, tmp_path / "child", "--outfile", file, "--outtype", "f32"]
    converted = subprocess.run(command, capture_output=True, text=True, check=False)

    assert converted.returncode == 0, converted.stderr[-3000:]
    compare_exactly(file, child, vocabulary_of(tokenizer, child.config.vocab_size))
