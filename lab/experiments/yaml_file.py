"""Reads all YAML files: run configurations, study files, claim cards and testbeds.

Such a file may come from an untrusted source, so parsing is bounded. A file has at most `LARGEST` bytes, its values are
nested at most `DEEPEST` levels deep, and it holds at most `MOST` keys and values; the values behind an alias count at
each place where the alias appears. A key may appear once in its section, an alias may not appear within its own anchor,
and values are null, booleans, numbers, texts, lists and sections: tags create no other objects, and a date is a text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from ...common.specs import shorten

LARGEST = 256 * 1024  # bytes
DEEPEST = 30  # levels of lists and sections
MOST = 10_000  # keys and values
LONGEST_NUMBER = 100  # characters
LONGEST_MESSAGE = 300  # characters


class BadYaml(ValueError):
    """A file is not valid YAML, or not within the bounds. The message is one line that names the line of the file."""


def read_yaml_file(path: Path) -> Any:
    """The content of a file.

    Raises:
        BadYaml: It is too large, not UTF-8, not YAML, or not within the bounds.
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        data = file.read(LARGEST + 1)  # never more: the path may be an endless device
    if len(data) > LARGEST:
        raise BadYaml(f"it is larger than {LARGEST // 1024} KiB")
    try:
        return parse_yaml(data.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise BadYaml(f"it is not UTF-8 text: {error.reason} at byte {error.start}") from None


def parse_yaml(text: str) -> Any:
    """The content of a text (BadYaml)."""
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError, OverflowError) as error:
        message = " ".join(str(error).split()).replace(' in "<unicode string>",', ",")
        raise BadYaml(message if len(message) <= LONGEST_MESSAGE else f"{message[:LONGEST_MESSAGE]}...") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """`SafeLoader` with bounds, checked while the nodes are made, before any object is built from them."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.depth = self.count = 0
        self.sizes: dict[int, tuple[int, int]] = {}  # by node: keys and values in it, and levels

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        is_alias = self.check_event(yaml.AliasEvent)
        self.depth += 1
        self.count += 1
        self._bound(self.count, self.depth, mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if node is None:
            return None
        if not is_alias:
            self._measure(node)
        elif id(node) not in self.sizes:
            raise yaml.MarkedYAMLError(problem="an alias appears within its own anchor", problem_mark=mark)
        return node

    def _measure(self, node: yaml.Node) -> None:
        parts: list[yaml.Node] = []
        if isinstance(node, yaml.MappingNode):
            self._refuse_repeated_keys(node)
            parts = [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            parts = node.value
        inner = [self.sizes[id(part)] for part in parts]
        size, levels = 1 + sum(size for size, _ in inner), 1 + max((levels for _, levels in inner), default=0)
        self._bound(size, levels, node.start_mark)
        self.sizes[id(node)] = size, levels

    def _bound(self, count: int, depth: int, mark: Any) -> None:
        if depth > DEEPEST:
            problem = f"values are nested more than {DEEPEST} levels deep"
        elif count > MOST:
            problem = f"there are more than {MOST:,} keys and values (the values behind an alias count at each alias)"
        else:
            return
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=_without_text(mark))

    def _refuse_repeated_keys(self, node: yaml.MappingNode) -> None:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(
                        problem=f"{shorten(key.value)} appears twice", problem_mark=_without_text(key.start_mark)
                    )
                seen.add(key.value)

    def number(self, node: yaml.ScalarNode) -> Any:
        if len(node.value) > LONGEST_NUMBER:
            problem = f"a number has more than {LONGEST_NUMBER} characters"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=_without_text(node.start_mark))
        is_whole = node.tag == "tag:yaml.org,2002:int"
        return self.construct_yaml_int(node) if is_whole else self.construct_yaml_float(node)

    def unknown(self, node: yaml.Node) -> Any:
        message = "values are numbers, texts, lists and sections"
        problem = f"could not determine a constructor for the tag {shorten(node.tag)}: {message}"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=_without_text(node.start_mark))


_CONSTRUCTORS: dict[Any, Any] = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag and tag.removeprefix("tag:yaml.org,2002:") in ("null", "bool", "str", "seq", "map")
} | {"tag:yaml.org,2002:int": _Loader.number, "tag:yaml.org,2002:float": _Loader.number, None: _Loader.unknown}
_Loader.yaml_constructors = _CONSTRUCTORS
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _without_text(mark: Any) -> Any:
    """A position in the file as line and column only, so that messages do not quote the file."""
    return yaml.Mark(mark.name, mark.index, mark.line, mark.column, None, 0)
