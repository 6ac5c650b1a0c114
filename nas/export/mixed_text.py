"""A text of 100 kB to compare tokenizers on: prose, code, many scripts, emoji, digits and runs of white space.

The same on every machine with the same Python: written samples, and the standard library's sources between them.
"""

from nas.errors import MissingFileError
from nas.text.standard_library import stdlib_files

SIZE = 100_000
"""Bytes of it, at least."""
_PIECE = 1500

_SAMPLES = (
    "Once upon a time, there were 1,234 naïve puzzles; they'd cost £3.50 each (or €4—roughly), and WE'LL see "
    "who's right: it's I'm you've she'd o'clock. He said “no” ‘twice’…\n\n\n3.14159 1000000 12345678 0x1F "
    "1e-9 2026-11-28 18:55 +49-30-1234567 10% #1 @home a_b __init__ foo.bar/baz?q=1&r=2",
    "\tif (x<=10 && y!=-1)\n\t\t{ return arr[i]++ ; }  // done\n\n    def f(x): return x**2 != 3\n\r\n\r\n    "
    "  six   three  two one\t\t tabs \n \n  \n   trailing   \nSELECT * FROM t WHERE a='b';--x\n<p "
    'class="a">&nbsp;</p>\n',
    "Добрый день, как дела? Καλημέρα κόσμε. שלום עולם مرحبا بالعالم ١٢٣ नमस्ते दुनिया १२३ สวัสดีชาวโลก",
    "你好，世界！今天是2026年11月28日。 こんにちは世界、テストです。 안녕하세요 세계 "
    "😀🚀👨\u200d👩\u200d👧 ❤\ufe0f🇩🇪 →∑√≈ ½ ² Ⅷ ª ﬁ",
    "Straße Ångström Łódź İstanbul e\u0301 cafe\u0301 A\u030a \u00a0 \u2003 \u3000x\u200by\ufeffz 'S 'T 'RE "
    "LL'LL ''' \"\"\" ... !!! ??? --- *** ~~~ ``` {{}} [[]] \\n \\\\ $x^2$ §¶†‡",
)


def mixed_text() -> tuple[str, ...]:
    """The text in pieces that are short enough to say where two tokenizers part."""
    pieces = list(_SAMPLES)
    pieces += [" ".join(_SAMPLES), "\n".join(reversed(_SAMPLES)), *(f" {sample}" for sample in _SAMPLES)]
    written = sum(len(piece.encode()) for piece in pieces)
    for source in _sources():
        for start in range(0, len(source), _PIECE):
            if written >= SIZE:
                return tuple(pieces)
            pieces.append(source[start : start + _PIECE])
            written += len(pieces[-1].encode())
    return tuple(pieces) + tuple(_SAMPLES) * ((SIZE - written) // sum(len(sample.encode()) for sample in _SAMPLES) + 1)


def _sources() -> list[str]:
    try:
        files = stdlib_files("heldout")
    except MissingFileError:
        return []
    return [file.read_text(encoding="utf-8", errors="ignore") for file in files]
