"""Text as it may reach a terminal: what would steer it is shown, not obeyed.

Names come from files that others wrote; an escape in one could clear the screen, hide a line or retitle the window.
"""

import re

# Control characters but tab and newline, and those that turn the direction of the text around them or end a line.
_STEERS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """`text` with each such character as Python would write it, ESC as \\x1b."""
    return _STEERS.sub(lambda found: found[0].encode("unicode_escape", "surrogatepass").decode("ascii"), text)
