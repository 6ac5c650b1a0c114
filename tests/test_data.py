"""Text becomes tokens the same way every time, and no set sees documents it must not."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BatchEncoding, PreTrainedTokenizerFast

from nas.errors import TextError
from nas.job.data import Data
from nas.text.kept_tokens import load_tokens
from nas.text.standard_library import stdlib_files
from nas.text.tokens import SPLITS, Dropped, Tokens

VOCABULARY, BOS = 300, "<|bos|>"
SHARED = Path(__file__).parents[2] / "shared"
STORIES = SHARED / "parents/stories260K"


def byte_level(bos: bool, template: bool = False) -> PreTrainedTokenizerFast:
    """A byte-level BPE; with `template` it opens every text with BOS by itself."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[BOS], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([Path(__file__).read_text(encoding="utf-8")], trainer)
    if template:
        tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS if bos else None, model_max_length=64)


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return byte_level(bos=True)


def stories(count: int, seed: int = 0) -> list[str]:
    """Distinct documents, each of a few dozen words that name it."""
    draw = random.Random(seed)
    return [" ".join(f"s{seed}d{index}w{draw.randrange(1000)}" for _ in range(30)) for index in range(count)]


def data(**given: object) -> Data:
    sizes = {name: 256 for name in ("calibration_tokens", "score_tokens", "evaluation_tokens")}
    return Data.model_validate({"sequence_length": 32, "distillation_tokens": 1024, **sizes, **given})


def write(path: Path, documents: list[str], separator: str = "<|endoftext|>") -> Path:
    path.write_text(separator.join(documents), encoding="utf-8")
    return path


def documents_seen(tokens: Tokens, tokenizer: PreTrainedTokenizerFast) -> dict[str, set[str]]:
    """Which stories each set shows a whole word of, by the names in the words."""
    texts = {split: tokenizer.decode(getattr(tokens, split).ravel().tolist()) for split in SPLITS}
    return {
        split: {word.partition("w")[0] for word in text.replace(BOS, " ").split()[:-1]} for split, text in texts.items()
    }


# --- the sets -------------------------------------------------------------------------------------------------------


def test_no_set_sees_documents_it_must_not(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = load_tokens(data(train=[write(tmp_path / "all.txt", stories(100))]), tokenizer, VOCABULARY)
    seen = documents_seen(tokens, tokenizer)
    assert all(seen.values())
    assert seen["calibration"] <= seen["distillation"]
    for one, other in (("distillation", "score"), ("distillation", "evaluation"), ("score", "evaluation")):
        assert not seen[one] & seen[other]


def test_a_tokenizer_gets_two_megabytes_at_once(tmp_path: Path) -> None:
    """It holds hundreds of bytes of each token until it is done."""
    given: list[int] = []

    class Recording(PreTrainedTokenizerFast):
        def __call__(self, text: list[str], **how: bool) -> BatchEncoding:  # type: ignore[override]
            given.append(sum(map(len, text)))
            return super().__call__(text, **how)

    asked = data(train=[write(tmp_path / "all.txt", stories(17_000))], distillation_tokens=4_000_000)
    load_tokens(asked, Recording(tokenizer_object=byte_level(bos=True).backend_tokenizer, bos_token=BOS), VOCABULARY)
    assert sum(given) > 4_000_000
    assert max(given) < 2_200_000


def test_a_paragraph_of_many_documents_is_in_one_set_alone(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A licence at the end of every file would else be trained on, scored on and evaluated on."""
    licence = " ".join(f"licence{word}" for word in range(40))
    documents = [f"{story}\n\n{licence}" for story in stories(100)]
    tokens = load_tokens(data(train=[write(tmp_path / "all.txt", documents)]), tokenizer, VOCABULARY)
    sets = [tokenizer.decode(ids.ravel().tolist()) for ids in (tokens.distillation, tokens.score, tokens.evaluation)]
    assert ["licence" in text for text in sets].count(True) == 1


def test_sets_are_whole_read_only_sequences(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    asked = data(train=[write(tmp_path / "all.txt", stories(100))], score_tokens=250)
    tokens = load_tokens(asked, tokenizer, VOCABULARY)
    assert tokens.score.shape == (7, 32)
    assert tokens.distillation.shape == (32, 32)
    assert np.array_equal(tokens.calibration, tokens.distillation[:8])
    for split in SPLITS:
        ids = getattr(tokens, split)
        assert ids.dtype == np.int32
        assert not ids.flags.writeable
    assert tokens.sources == {"all.txt": {"distillation": 1024, "score": 224, "evaluation": 256}}


def test_names_order_and_copies_of_files_change_nothing(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    documents = stories(100)
    (tmp_path / "other").mkdir()
    one = [write(tmp_path / "a.txt", documents[:70]), write(tmp_path / "b.txt", documents[70:])]
    other = [
        write(tmp_path / "other/b.txt", documents[99:69:-1]),
        write(tmp_path / "other/z.txt", [*documents[:70], "", documents[3]]),
    ]
    first = load_tokens(data(train=one), tokenizer, VOCABULARY)
    second = load_tokens(data(train=other), tokenizer, VOCABULARY)
    assert [first.digest(split) for split in SPLITS] == [second.digest(split) for split in SPLITS]
    assert (first.dropped, second.dropped) == (Dropped(), Dropped(repeated=1))


def test_the_digest_knows_ids_and_shape(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    train = [write(tmp_path / "all.txt", stories(100))]
    short = load_tokens(data(train=train, sequence_length=16), tokenizer, VOCABULARY)
    long = load_tokens(data(train=train, sequence_length=32), tokenizer, VOCABULARY)
    digests = {tokens.digest(split) for tokens in (short, long) for split in SPLITS}
    assert len(digests) == 8
    assert all(len(digest) == 16 and int(digest, 16) >= 0 for digest in digests)


def test_what_is_evaluated_on_is_not_trained_on(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    train, held_out = stories(60), stories(20, seed=1)
    asked = data(
        train=[write(tmp_path / "train.txt", train + held_out[:7])],
        evaluation=[write(tmp_path / "evaluation.txt", held_out)],
    )
    tokens = load_tokens(asked, tokenizer, VOCABULARY)
    assert tokens.dropped == Dropped(evaluated=7)
    seen = documents_seen(tokens, tokenizer)
    assert {name[:2] for name in seen["evaluation"]} == {"s1"}
    assert {name[:2] for name in seen["score"] | seen["distillation"]} == {"s0"}


def test_scores_take_as_many_documents_as_they_need(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    train = [write(tmp_path / "all.txt", stories(100))]
    tokens = load_tokens(data(train=train, score_tokens=4096), tokenizer, VOCABULARY)
    assert tokens.score.size == 4096
    seen = documents_seen(tokens, tokenizer)
    assert not seen["score"] & seen["distillation"]


def test_a_small_set_sees_many_long_documents(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """A book is read in parts, shuffled among those of the other books; each part is opened by BOS."""
    books = [" ".join(stories(30, seed)) for seed in range(12)]
    files = [write(tmp_path / f"{index}.txt", [book]) for index, book in enumerate(books)]
    asked = data(train=files, document_separator=None, distillation_tokens=4096)
    tokens = load_tokens(asked, tokenizer, VOCABULARY)
    books_seen = {name.partition("d")[0] for name in documents_seen(tokens, tokenizer)["distillation"]}
    assert len(books_seen & {f"s{seed}" for seed in range(12)}) >= 5


def test_only_as_much_is_tokenised_as_the_sets_take(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    characters = 0
    encode = PreTrainedTokenizerFast.__call__

    def counted(self: PreTrainedTokenizerFast, text: list[str], **options: object) -> object:
        nonlocal characters
        characters += sum(map(len, text))
        return encode(self, text, **options)

    monkeypatch.setattr(PreTrainedTokenizerFast, "__call__", counted)
    train = write(tmp_path / "all.txt", ["\n".join(stories(8_000))])
    evaluation = write(tmp_path / "evaluation.txt", stories(20, seed=1))
    asked = data(
        train=[train, write(tmp_path / "more.txt", ["\n".join(stories(8_000, seed=2))])], evaluation=[evaluation]
    )
    load_tokens(asked, tokenizer, VOCABULARY)
    assert train.stat().st_size > 2_000_000
    assert characters < 20_000


# --- tokens ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", [False, True])
def test_every_document_is_opened_by_one_bos(tmp_path: Path, template: bool) -> None:
    """Whatever the tokenizer adds of itself, and where the text spells the token already."""
    documents = stories(100)
    spelled = [BOS + text if index % 2 else text for index, text in enumerate(documents)]
    tokens = load_tokens(
        data(train=[write(tmp_path / "all.txt", spelled)]), byte_level(bos=True, template=template), VOCABULARY
    )
    stream = tokens.distillation.ravel()
    assert stream[0] == 0
    starts = np.flatnonzero(stream == 0)
    assert len(starts) > 3
    assert (np.diff(starts) > 1).all()


def test_the_stream_is_the_documents_after_each_other(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    documents = stories(100)
    tokens = load_tokens(data(train=[write(tmp_path / "all.txt", documents)]), tokenizer, VOCABULARY)
    opening, *middle, _cut_off = tokenizer.decode(tokens.distillation.ravel().tolist()).split(BOS)
    assert opening == ""
    assert len(middle) >= 2
    assert set(middle) <= set(documents)


def test_a_tokenizer_without_bos_adds_none(tmp_path: Path) -> None:
    plain = byte_level(bos=False)
    tokens = load_tokens(data(train=[write(tmp_path / "all.txt", stories(100))]), plain, VOCABULARY)
    assert (tokens.distillation != 0).all()


@pytest.mark.skipif(not STORIES.exists(), reason="the stories260K checkpoint is not here")
def test_a_tokenizer_others_trained(tmp_path: Path) -> None:
    tokenizer = PreTrainedTokenizerFast.from_pretrained(STORIES)
    tokens = load_tokens(data(train=[write(tmp_path / "all.txt", stories(100))]), tokenizer, 512)
    stream = tokens.distillation.ravel()
    assert stream[0] == tokenizer.bos_token_id == 1
    assert "s0d" in tokenizer.decode(stream[:32].tolist())


def test_the_standard_library_pairs_with_its_held_out_files(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = load_tokens(data(train="stdlib"), tokenizer, VOCABULARY)
    assert tokens.sources == {
        "stdlib": {"distillation": 1024, "score": 256},
        "stdlib, held out": {"evaluation": 256},
    }
    evaluated = tokenizer.decode(tokens.evaluation.ravel().tolist()).split(BOS)[1:-1]
    held_out = [path.read_text(encoding="utf-8") for path in stdlib_files("heldout")]
    assert all(any(text in whole for whole in held_out) for text in evaluated)


# --- datasets -------------------------------------------------------------------------------------------------------


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of jsonl with two columns, read with a cache of its own."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "rows"
    folder.mkdir()
    lines = [json.dumps({"story": text, "number": index}) for index, text in enumerate(stories(100))]
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder


def test_a_local_dataset_is_read_as_its_rows(rows: Path, tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    as_text = load_tokens(data(train=[write(tmp_path / "all.txt", stories(100))]), tokenizer, VOCABULARY)
    for place in (rows, rows / "train.jsonl"):
        asked = data(train={"dataset": str(place), "column": "story"})
        tokens = load_tokens(asked, tokenizer, VOCABULARY)
        assert [tokens.digest(split) for split in SPLITS] == [as_text.digest(split) for split in SPLITS]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"column": "text"}, "data.train: .*/rows/train.jsonl, line 1 has no column 'text'; it has story, number"),
        ({"column": "number"}, "data.train: .*/rows/train.jsonl, line 1: 'number' is a number, not text: 0"),
        ({"split": "trian"}, 'data.train: .*/rows: Unknown split "trian"'),
        ({"config": "french"}, "data.train: .*/rows: BuilderConfig 'french' not found"),
    ],
)
def test_a_dataset_that_does_not_fit_is_named(
    given: dict[str, str], message: str, rows: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(TextError, match=message):
        load_tokens(data(train={"dataset": str(rows), **given}), tokenizer, VOCABULARY)


def test_without_the_datasets_library_its_extra_is_named(
    rows: Path, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TextError, match=r"pip install 'puzzle-nas\[datasets\]'"):
        load_tokens(data(train={"dataset": str(rows)}), tokenizer, VOCABULARY)


# --- mistakes -------------------------------------------------------------------------------------------------------


def test_too_short_a_text_says_by_how_much(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    train = [write(tmp_path / "all.txt", stories(20))]
    for split, others in (("distillation", 512), ("score", 1280), ("evaluation", 1280)):
        wanted = (
            rf"data.train holds 5,\d\d\d tokens, and {99_968 + others:,} .*{split}_tokens 99,968.* all.txt 5,\d\d\d"
        )
        with pytest.raises(TextError, match=wanted):
            load_tokens(data(train=train, **{f"{split}_tokens": 99_999}), tokenizer, VOCABULARY)


def test_too_short_a_text_of_its_own_is_evaluations_fault(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    asked = data(
        train=[write(tmp_path / "all.txt", stories(100))],
        evaluation=[write(tmp_path / "few.txt", stories(2, seed=1))],
        evaluation_tokens=4096,
    )
    with pytest.raises(TextError, match=r"^data.evaluation holds \d\d\d tokens, and 4,096 .* By source: few.txt \d"):
        load_tokens(asked, tokenizer, VOCABULARY)


def test_text_that_is_empty_or_gone_is_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    empty = write(tmp_path / "empty.txt", [" \n", "\n"])
    asked = data(train=[empty])
    with pytest.raises(TextError, match=r"data.train: there is no text in .*empty\.txt"):
        load_tokens(asked, tokenizer, VOCABULARY)
    empty.unlink()
    with pytest.raises(TextError, match=r"data.train: .*empty\.txt: No such file"):
        load_tokens(asked, tokenizer, VOCABULARY)


def test_bytes_that_are_no_utf8_are_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    path = tmp_path / "latin.txt"
    path.write_bytes(b"x" * 100_000 + "é".encode("latin-1") + b"x")
    with pytest.raises(TextError, match=r"data.evaluation: .*latin\.txt, line 1: byte 0xe9 is not UTF-8"):
        load_tokens(data(train=[Path(__file__)], evaluation=[path]), tokenizer, VOCABULARY)


def test_tokens_the_parent_has_no_embedding_for_are_named(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(TextError, match=r"gives token \d+, and the parent has 40 embeddings"):
        load_tokens(data(train=[write(tmp_path / "all.txt", stories(100))]), tokenizer, 40)
