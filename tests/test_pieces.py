"""Pieces are the documents and nothing else, copies are found however they are written, and shares are kept."""

import random
import unicodedata
from collections import Counter
from collections.abc import Sequence
from tempfile import TemporaryFile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.text.pieces import cut, key_of, paragraph_keys, without_copies
from nas.text.sources import Document
from nas.text.spool import spooled

LONG = (
    "The mills of the village of Saint-Rémy grind slowly, “and”, as everybody there knows, they grind exceedingly fine."
)
OTHER = (
    "Nobody who comes to the village in winter finds an open door, for doors are shut from October up to the spring."
)


def pieces_of(documents: Sequence[Sequence[str]], characters: int) -> tuple[list[Document], int]:
    """The pieces of documents by source, as they are drawn, and how many were copies."""
    given = (Document(source, text) for source, texts in enumerate(documents) for text in texts)
    with TemporaryFile() as file:
        pieces = spooled(given, characters, file)
        return [pieces[index] for index in range(len(pieces))], pieces.repeated


def words(count: int, seed: int) -> str:
    draw = random.Random(seed)
    return "".join(f"w{draw.randrange(10**6)}" + draw.choice([" ", " ", ". ", "\n", "\n\n"]) for _ in range(count))


@given(st.text(st.sampled_from("ab. \n"), max_size=300), st.integers(2, 40))
def test_cuts_lose_and_repeat_nothing(text: str, characters: int) -> None:
    parts = list(cut(text, characters))
    assert "".join(parts) == text
    assert all(characters // 2 <= len(part) <= 2 * characters for part in parts[:-1])
    assert len(parts) == 1 or characters <= len(parts[-1]) <= 2 * characters


def test_cuts_are_where_a_paragraph_ends_or_a_line_or_a_word() -> None:
    paragraphs = [f"{index} " * 30 + f"\n{index} " * 3 for index in range(9)]
    assert all(part.endswith("\n\n") for part in list(cut("\n\n".join(paragraphs), 150))[:-1])
    assert all(part.endswith("\n") for part in list(cut("a line of words\n" * 50, 150))[:-1])
    assert all(part.endswith(" ") for part in list(cut("words " * 100, 150))[:-1])


@pytest.mark.parametrize(
    "copy",
    [
        f"\ufeff{LONG}",
        f"{LONG}  \r\n",
        LONG.replace(" ", "\n", 5),
        LONG.replace(" ", "\u00a0", 5),
        LONG.replace("village", "vil\u00adlage"),
        LONG.replace("of ", "of\u200b "),
        unicodedata.normalize("NFD", LONG),
    ],
)
def test_a_copy_is_one_however_it_is_written(copy: str) -> None:
    assert copy != LONG
    assert key_of(copy) == key_of(LONG)
    assert key_of(copy + ".") != key_of(LONG)


def test_long_paragraphs_that_are_known_are_left_out() -> None:
    known = set(paragraph_keys(f"{LONG}\n\nThe end."))
    assert without_copies(f"Before.\n\n{LONG} \n\nThe end.", known) == ("Before.\n\nThe end.", 1)
    assert without_copies(f"{OTHER}\n{LONG}\nThe end.", known) == (f"{OTHER}\nThe end.", 1)
    wrapped = LONG.replace(" ", "\n", 7)
    assert without_copies(f"{OTHER}\n\n{wrapped}", known) == (f"{OTHER}\n\n", 1)
    untouched = f"{OTHER}\r\n\r\n  The end.\n"
    assert without_copies(untouched, known) == (untouched, 0)


def test_pieces_are_the_documents_each_once() -> None:
    documents = [words(50, seed) for seed in range(20)]
    pieces, repeated = pieces_of([documents, documents[:5]], 200)
    parts = [part for text in documents for part in cut(text, 200)]
    assert sorted(piece.text for piece in pieces) == sorted(parts)
    assert repeated == sum(len(list(cut(text, 200))) for text in documents[:5])
    assert {piece.source for piece in pieces} == {0}


def test_no_text_is_no_pieces() -> None:
    assert pieces_of([[], []], 200) == ([], 0)


def test_the_order_depends_on_the_texts_alone() -> None:
    one, other = ([words(300, seed) for seed in seeds] for seeds in (range(10), range(10, 14)))
    texts = [piece.text for piece in pieces_of([one, other], 200)[0]]
    assert [piece.text for piece in pieces_of([other[::-1], one[::-1]], 200)[0]] == texts
    assert texts != sorted(texts)


@pytest.mark.parametrize("sizes", [(4000, 4000), (8000, 800), (6000, 3000, 600), (500,) * 12])
def test_any_stretch_of_the_order_has_the_sources_in_their_shares(sizes: tuple[int, ...]) -> None:
    """Up to a piece of each: what is drawn one after the other is of one kind."""
    documents = [[words(size, seed)] for seed, size in enumerate(sizes)]
    pieces, _ = pieces_of(documents, 200)
    whole = sum(len(piece.text) for piece in pieces)
    for start in range(0, len(pieces) * 3 // 4, 7):
        stretch = pieces[start : start + len(pieces) // 4]
        characters = Counter[int]()
        for piece in stretch:
            characters[piece.source] += len(piece.text)
        for source, (text,) in enumerate(documents):
            expected = characters.total() * len(text) / whole
            assert characters[source] == pytest.approx(expected, abs=2 * 400), (start, source)


def test_small_sources_are_as_likely_anywhere() -> None:
    """Files of one piece each beside a book of as much text: the head of the order is of both."""
    small = [[words(20, seed)] for seed in range(1, 201)]
    pieces, _ = pieces_of([[words(4000, 0)], *small], 200)
    head = pieces[: len(pieces) // 5]
    share = sum(len(piece.text) for piece in head if piece.source == 0) / sum(len(piece.text) for piece in head)
    assert 0.35 < share < 0.65
