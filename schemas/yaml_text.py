"""YAML as users mean it: as in YAML 1.2 ``1:2`` and ``off`` are texts, and a key that stands twice is an error."""

from typing import Any

import yaml


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML or JSON text; raises yaml.YAMLError for what is none, and for a key given twice."""
    return yaml.load(text, _Loader)


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader follows YAML 1.1, where 1:2 is 62 and off is false, and keeps the last of equal keys."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Return a mapping; raises ConstructorError for a key that stands twice."""
        seen = set()
        for key, _ in node.value:
            if (key.tag, key.value) in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} stands twice", key.start_mark)
            seen.add((key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)

    def construct_number(self, node: yaml.ScalarNode) -> int | float | str:
        """Return a number, or the text where the number would be in base 60."""
        if ":" in node.value:
            return str(node.value)
        is_int = node.tag.endswith(":int")
        number: int | float = self.construct_yaml_int(node) if is_int else self.construct_yaml_float(node)
        return number

    def construct_switch(self, node: yaml.ScalarNode) -> bool | str:
        """Return whether the text is true; other words for it, such as on and no, stay texts."""
        return node.value.lower() == "true" if node.value.lower() in {"true", "false"} else str(node.value)


_Loader.add_constructor("tag:yaml.org,2002:bool", _Loader.construct_switch)
for _kind in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_kind}", _Loader.construct_number)
