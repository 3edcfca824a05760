"""YAML as users mean it: values have the types of YAML 1.2, and a key that stands twice is an error.

PyYAML follows YAML 1.1, where ``1:2`` is 62, ``off`` is false, ``010`` is 8 and ``2026-12-01`` is no text; of equal
keys it keeps the last one.
"""

import math
import re
from typing import Any

import yaml

_TAG = "tag:yaml.org,2002:"
_SIGNS = "-+.0123456789"


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML or JSON text; raises yaml.YAMLError for what is none, and for a key given twice."""
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Return a mapping as it is written; raises ComposerError for a key that stands twice in it."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    raise yaml.composer.ComposerError(None, None, f"{key.value!r} stands twice", key.start_mark)
                seen.add((key.tag, key.value))
        return node

    def construct_whole(self, node: yaml.ScalarNode) -> int:
        """Return a whole number, in decimal digits, or behind 0x or 0o in others."""
        return int(node.value, 0 if node.value[:2] in {"0x", "0o"} else 10)

    def construct_decimal(self, node: yaml.ScalarNode) -> float:
        """Return a number with a point or an exponent; ``.inf`` and ``.nan`` are such numbers."""
        special = {"inf": math.inf, "nan": math.nan}.get(node.value.lstrip("+-.").lower())
        if special is None:
            return float(node.value)
        return -special if node.value.startswith("-") else special


_Loader.yaml_implicit_resolvers = {}
for _kind, _form, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", _SIGNS),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(_TAG + _kind, re.compile(f"^(?:{_form})$"), list(_first))
_Loader.add_constructor(f"{_TAG}int", _Loader.construct_whole)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_decimal)
