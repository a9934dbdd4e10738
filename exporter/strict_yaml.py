"""YAML as all files of virtgauge are read: no key twice, and no more than was written.

PyYAML's C reader would be faster, but a file of nested brackets makes it overflow its stack.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

_MERGE = "tag:yaml.org,2002:merge"
MOST_NODES = 200_000
"""Values and keys of a document, aliases counted as what they stand for: a few lines can name each other a billion
times over, and whoever walks or prints that never comes back."""


class StrictLoader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would silently keep the last, and aliases that grow without bound.

    What it raises is a YAMLError, a ValueError or a RecursionError.
    """

    def get_single_node(self) -> yaml.Node | None:
        node: yaml.Node | None = super().get_single_node()
        if node is not None:
            _count(node, {})
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key_node, _value in node.value:
            if key_node.value in seen and key_node.tag != _MERGE:
                raise _refused(f"the key {key_node.value!r} is given twice", key_node)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (AttributeError, LookupError, TypeError):
            # PyYAML's own stumbling over a value that is not of its tag, like `!!timestamp x`.
            raise _refused(f"this is no {node.tag.rpartition(':')[2]}", node) from None


def _count(node: yaml.Node, counted: dict[int, int]) -> int:
    """How many nodes stand below `node`, itself included.

    Raises ConstructorError above MOST_NODES, for a circle, and for a key that is no text.
    """
    known = counted.get(id(node))
    if known is None:
        # Until it is counted: who comes here again does so from inside it.
        counted[id(node)] = MOST_NODES + 1
        known = counted[id(node)] = 1 + sum(_count(inner, counted) for inner in _inside(node))
    if known > MOST_NODES:
        raise _refused(f"with its aliases written out it has more than {MOST_NODES} values", node)
    return known


def _inside(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.SequenceNode):
        yield from node.value
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused("a key is a list or holds keys itself", key)
            yield key
            yield value


def _refused(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
