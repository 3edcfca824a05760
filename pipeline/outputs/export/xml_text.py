"""Text for XML 1.0: escaped, and with U+FFFD for characters that XML can't hold at all."""

import re
from xml.sax.saxutils import escape

_IMPOSSIBLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ENTITIES = {'"': "&quot;", "\t": "&#9;", "\n": "&#10;", "\r": "&#13;"}
"""Characters that an attribute would otherwise end at, or lose."""


def xml_text(value: object) -> str:
    """Return ``str(value)`` so that a parser gives it back, between tags as well as between double quotes."""
    return escape(_IMPOSSIBLE.sub("\N{REPLACEMENT CHARACTER}", str(value)), _ENTITIES)
