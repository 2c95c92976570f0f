"""Text from outside, where people read it: in a terminal, a log, a sentence."""

import re

_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
"""What a terminal would obey, or could not write: controls, line ends, marks of direction."""


def plain(text: str) -> str:
    """Text from outside in one line: what would steer the terminal is shown as in Python."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
