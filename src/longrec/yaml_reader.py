"""Reading of YAML: plain values only, with bounded size, depth and aliases.

``read_yaml`` follows YAML 1.2 for numbers and booleans (``1e-3`` is a number, ``no`` is text) and refuses a key written
twice. Nothing in a document is executed, and no tag creates an object.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from longrec.errors import ConfigError, quote

MAX_CHARACTERS = 2_000_000
"""Largest size of a document."""
MAX_DEPTH = 50
"""Largest number of collections inside each other."""
MAX_VALUES = 500_000
"""Largest number of values of a document, with each alias written out."""


class _Loader(yaml.SafeLoader):
    """Safe loader of YAML with 1.2 scalars, no duplicate keys and bounded collections.

    The number of values of each collection is counted when it ends. An alias adds those of its anchor, which has ended
    before, so that a document of nested aliases is refused before its values are built.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth, self._values = 0, 0
        self._sizes: dict[yaml.Node, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, and count its values."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        assert event.start_mark is not None
        line = event.start_mark.line + 1
        alias: str | None = event.anchor if isinstance(event, yaml.AliasEvent) else None
        before = self._values
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise yaml.YAMLError(f"line {line}: more than {MAX_DEPTH} lists and mappings inside each other")
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if alias is not None and node not in self._sizes:
            raise yaml.YAMLError(f"line {line}: the alias *{alias} is inside its own anchor")
        own = 1 + len(node.value) // 100 if isinstance(node, yaml.ScalarNode) else 1  # a long text counts for several
        self._values += own if alias is None else self._sizes[node]
        if self._values > MAX_VALUES:
            raise yaml.YAMLError(f"line {line}: more than {MAX_VALUES:,} values, counting those of each alias")
        if alias is None:
            self._sizes[node] = self._values - before
        return node


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, rx)
        for tag, rx in resolvers
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.(?:inf|Inf|nan|NaN))$"),
    list("-+0123456789."),
)


def _construct_mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if not isinstance(key, Hashable):
            raise yaml.YAMLError(f"line {line}: a key must be text or a number, got {quote(key)}")
        if key in seen:
            raise yaml.YAMLError(f"line {line}: key {quote(key)} is already written on line {seen[key]}")
        seen[key] = line
    return dict(loader.construct_pairs(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)


def load_yaml(text: str) -> Any:
    """Return the value of a YAML document.

    Raises:
        yaml.YAMLError: if the text is not YAML, a key is repeated, or the document is too large, too deep, or has too
            many values.
    """
    if len(text) > MAX_CHARACTERS:
        raise yaml.YAMLError(f"{len(text):,} characters; expected at most {MAX_CHARACTERS:,}")
    try:
        return yaml.load(text, _Loader)
    except (ValueError, LookupError, AttributeError, TypeError, OverflowError) as error:
        raise yaml.YAMLError(f"a value that does not fit its tag, or a number that is too long ({error})") from None


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one YAML mapping.

    Raises:
        ConfigError: if there is no such file, it is not YAML or not a mapping, a key is repeated, or it exceeds a limit
            of this module.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8") as file:
            content = load_yaml(file.read(MAX_CHARACTERS + 1))
    except FileNotFoundError:
        raise ConfigError(str(path), ["no such file; give the path of a YAML config"]) from None
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), [f"not readable as YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(content, dict):
        kind = "nothing" if content is None else type(content).__name__
        raise ConfigError(str(path), [f"must be a mapping of keys to values, got {kind}"])
    return content
