"""Strict YAML into (frozen) dataclasses: one file is one experiment, and no key is ever ignored.

A file may start from another (`base: medium.yaml`, relative to the file or else one of the project's
configs); keys merge one by one. Every mistake is a `UserError` that names the file, the line and the key.
To know the lines, and so that nothing in a file is ever constructed, this module reads PyYAML's node graph;
the dataclass then says what a scalar means. Hence `1e-4` is a float (PyYAML reads a string), `no` is a
choice where the annotation is `Literal["no", "fp16"]` (PyYAML reads False), and `010` and `1:30` are no
integers (PyYAML: 8 and 90).

Annotations: int, float, bool, str, Literal, tuple[T, ...], tuple[T, U], unions, nested dataclasses.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from train.base.errors import UserError, nearest

Config = TypeVar("Config")

MAX_DEPTH = 20  # of nested lists and mappings; PyYAML's composer recurses, so this also bounds its stack
INT = re.compile(r"[-+]?(0|[1-9][0-9_]{,24})")  # bounded: int() refuses very long text
FLOAT = re.compile(r"[-+]?([0-9][0-9_]*\.?[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.?(inf|nan)", re.IGNORECASE)
BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
UNWRITABLE = re.compile(r"[\0\ud800-\udfff]")  # in a file's name or text; surrogates are halves of a character
NULLS = {"", "~", "null", "Null", "NULL"}
CONFIGS = Path(__file__).parents[2] / "configs"
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    NoneType: "null",
}


@dataclasses.dataclass(frozen=True)
class Node:
    """A piece of YAML that remembers where it came from."""

    value: "str | list[Node] | dict[str, Node]"  # a scalar keeps its text
    origin: str  # "configs/demo.yaml, line 3", or the command line's "--set unet.num_heads=3"
    quoted: bool = False
    override: str | None = None  # the text as typed, of a value on the command line
    in_no_file: bool = False  # of a section: only the command line speaks of it

    def __str__(self) -> str:
        if isinstance(self.value, str):
            text = self.value if len(self.value) <= 60 else self.value[:57] + "..."
            return f'the text "{text}"' if self.quoted else text or "null"
        return "a section" if isinstance(self.value, dict) else f"a list of {len(self.value)}"


def load(cls: type[Config], path: str | Path, overrides: Sequence[tuple[str, str, str]] = ()) -> Config:
    """Read `path`, with its bases under it and `overrides` on top of it, into the dataclass `cls`.

    An override is (source, dotted key, value text), as in ("--set vae.latent_channels=8",
    "vae.latent_channels", "8"). Its source stands in errors where a file and line otherwise would. Its
    text is YAML, but taken as typed where the key is a str: regular expressions and paths need no quotes.
    """
    root = _read_with_bases(Path(path))
    for source, dotted_key, text in overrides:
        node = _read_override(source, text)
        for key in reversed(dotted_key.split(".")):
            node = Node({key: node}, source, in_no_file=True)
        root = _merge(root, node, from_file=False)
    return _section(cls, root, "")


def describe(cls: type, dotted_key: str) -> str:
    """What a key takes, in words, as in "one of no, fp16, bf16"."""
    for key in dotted_key.split("."):
        cls = get_type_hints(cls)[key]
    return _describe(cls)


def dump(config: Any) -> str:
    """The YAML text of a config dataclass; `load` reads it back to an equal object."""
    return yaml.dump(dataclasses.asdict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    """Writes what `load` reads back: "1e-4" in quotes where it is text, shared tuples without an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_tuple(self, data: tuple) -> yaml.Node:
        return self.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=True)

    def represent_text(self, data: str) -> yaml.Node:
        quote = '"' if _looks_typed(data) or not data.isprintable() else None  # else PyYAML loses a \x85
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=quote)


_Dumper.add_representer(tuple, _Dumper.represent_tuple)
_Dumper.add_representer(str, _Dumper.represent_text)


# ---- text to nodes


def _read_with_bases(path: Path) -> Node:
    """The root mapping of `path` merged over its base, its base's base, and so on."""
    roots, seen, asked_by = [], [], ""
    while True:
        root = _read_file(path, asked_by)
        if os.path.realpath(path) in seen:
            raise UserError(f"{asked_by}{path} leads back to this file, so neither can start from the other")
        roots.append(root)
        seen.append(os.path.realpath(path))
        base = root.value.pop("base", None)
        if base is None:
            break
        if not isinstance(base.value, str) or not base.value:
            raise UserError(f"{base.origin}: base must be the name of a YAML file, not {base}")
        beside, ours = path.parent / base.value, CONFIGS / base.value
        of_project = ours.parent == CONFIGS and os.path.isfile(ours) and not os.path.lexists(beside)
        path, asked_by = ours if of_project else beside, f"{base.origin}: base: "
    merged = roots.pop()
    while roots:
        merged = _merge(merged, roots.pop())
    return merged


def _read_file(path: Path, asked_by: str) -> Node:
    """The root mapping of one file. `asked_by` says, for errors, which file's base it is."""
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        near = nearest(path.name, (other.name for other in path.parent.glob("*.yaml")))
        raise UserError(f"{asked_by}{path} does not exist{near}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{asked_by}{path} is not UTF-8 text (byte {error.start})") from None
    except (OSError, ValueError) as error:  # a directory, no permission; a NUL in the name is a ValueError
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"{asked_by}{path} cannot be read ({reason})") from None
    root = _compose(text, lambda line: f"{path}, line {line + 1}")
    if root is None or not isinstance(root.value, dict):
        raise UserError(f"{path} must be a mapping of keys to values, not {root or 'empty'}")
    return root


def _read_override(source: str, text: str) -> Node:
    try:
        node = _compose(text, lambda line: source)
    except UserError:
        node = None  # no YAML, such as the pattern [0-9]+: text, which any key but a str will refuse
    return dataclasses.replace(node or Node(text, source), override=text)


def _compose(text: str, where: Callable[[int], str]) -> Node | None:
    """YAML text to a Node; None where it holds nothing. `where` makes a line, from 0, into an origin.

    Anchors, aliases and tags are refused. They and deep nesting are looked for in the event stream, which
    is flat, before anything recursive sees the text.
    """
    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise UserError(f"{where(event.start_mark.line)}: more than {MAX_DEPTH} levels of nesting")
            if getattr(event, "anchor", None) or getattr(event, "tag", None):
                line = where(event.start_mark.line)
                raise UserError(f"{line}: write the value out instead of an anchor (&), alias (*) or tag (!)")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{where(error.problem_mark.line)}: not valid YAML: {error.problem}") from None
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position)
        raise UserError(f"{where(line)}: not valid YAML: {error.reason}") from None
    except (ValueError, OverflowError) as error:  # PyYAML's own, on "\UFFFFFFFF"
        raise UserError(f"{where(0)}: not valid YAML: {error}") from None
    return None if root is None else _node(root, where)


def _node(node: yaml.Node, where: Callable[[int], str]) -> Node:
    """PyYAML's node to ours. A key that stands twice in a mapping is an error."""
    origin = where(node.start_mark.line)
    if isinstance(node, yaml.ScalarNode):
        return Node(node.value, origin, quoted=node.style is not None)
    if isinstance(node, yaml.SequenceNode):
        return Node([_node(item, where) for item in node.value], origin)
    mapping: dict[str, Node] = {}
    for key, value in node.value:
        line = where(key.start_mark.line)
        if not isinstance(key, yaml.ScalarNode):
            raise UserError(f"{line}: a key must be a word, not a list or mapping")
        if key.value in mapping:
            raise UserError(f'{line}: key "{key.value}" stands twice, first at {mapping[key.value].origin}')
        # A value's line is its key's: that is where the eye looks, also for a list on the lines below.
        mapping[key.value] = dataclasses.replace(_node(value, where), origin=line)
    return Node(mapping, origin)


def _merge(under: Node, over: Node, from_file: bool = True) -> Node:
    """`over` on top of `under`: mappings merge key by key, anything else is replaced.

    A merged section counts as the upper file's; an override leaves it where it stands.
    """
    if not (isinstance(under.value, dict) and isinstance(over.value, dict)):
        return over
    merged = {**under.value, **over.value}
    for key in under.value.keys() & over.value.keys():
        merged[key] = _merge(under.value[key], over.value[key], from_file)
    return Node(merged, over.origin if from_file else under.origin)


# ---- nodes to values


def _section(cls: type, node: Node, name: str) -> Any:
    """A mapping to the dataclass `cls`. `name` is the section's dotted key, "" for the whole file."""
    section = f"section {name}" if name else "the top level"
    kinds = get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    values = {}
    for key, value in node.value.items():
        if key not in fields:
            hint = _found_deeper(cls, key) or nearest(key, fields) or f"; its keys are {', '.join(fields)}"
            raise UserError(f'{value.origin}: unknown key "{key}" in {section}{hint}')
        values[key] = _value(kinds[key], value, f"{name}.{key}" if name else key)
    for key, field in fields.items():
        if key not in values and field.default is field.default_factory is dataclasses.MISSING:
            absent = ", which no file has," if node.in_no_file else ""
            raise UserError(f'{node.origin}: {section}{absent} lacks the key "{key}", {_describe(kinds[key])}')
    try:
        return cls(**values)
    except ValueError as error:  # the dataclass's own checks, in __post_init__
        where = _named_in(str(error), node) or node.origin
        raise UserError(f"{where}: {f'{section}: ' if name else ''}{error}") from error


def _named_in(message: str, node: Node) -> str:
    """Where the values stand that a message about the section `node` speaks of by their keys; "" if nowhere."""
    origins = []
    for word in re.findall(r"[\w.]+", message):
        found: Node | None = node
        for key in word.rstrip(".").split("."):
            found = found.value.get(key) if found and isinstance(found.value, dict) else None
        if found and not isinstance(found.value, dict):
            origins.append(found.origin)
    return " and ".join(dict.fromkeys(origins))


def _found_deeper(cls: type, key: str) -> str:
    """' (did you mean unet.channels?)' for `channels` that stands one level too high; else ''."""
    sections = {name: kind for name, kind in get_type_hints(cls).items() if dataclasses.is_dataclass(kind)}
    found = [f"{name}.{key}" for name, kind in sections.items() if key in get_type_hints(kind)]
    return f" (did you mean {' or '.join(found)}?)" if found else ""


def _value(kind: Any, node: Node, name: str) -> Any:
    """One value as the annotation `kind`; `name` is its dotted key, for errors."""
    args = get_args(kind)
    if dataclasses.is_dataclass(kind):
        if isinstance(node.value, dict):
            return _section(kind, node, name)
    elif get_origin(kind) in (Union, UnionType):
        for arm in sorted(args, key=lambda arm: arm is not NoneType):  # null before str, which would take it
            if dataclasses.is_dataclass(arm) and isinstance(node.value, dict):
                return _section(arm, node, name)  # its errors say more than the union's would
            try:
                return _value(arm, node, name)
            except UserError:
                continue
    elif get_origin(kind) is tuple:
        if isinstance(node.value, list) and (args[-1] is Ellipsis or len(args) == len(node.value)):
            kinds = args[:1] * len(node.value) if args[-1] is Ellipsis else args
            items = zip(kinds, node.value, strict=True)
            return tuple(_value(kind, item, f"{name}[{i}]") for i, (kind, item) in enumerate(items))
    elif kind is str and node.override is not None and not UNWRITABLE.search(node.override):
        return node.override
    elif isinstance(node.value, str):
        for value in _readings(kind, node):
            return value
    hint = ""
    if isinstance(node.value, str) and get_origin(kind) is Literal:
        hint = nearest(node.value, map(str, args))
    elif isinstance(node.value, str) and str in (kind, *args):
        hint = "; put it in quotes if it is text"
        if UNWRITABLE.search(node.override or node.value):
            hint = ", which holds a character that no file can hold"
    raise UserError(f"{node.origin}: {name} must be {_describe(kind)}, not {node}{hint}")


def _readings(kind: Any, node: Node) -> Iterator[Any]:
    """A scalar as the annotation `kind`: its value, or nothing where the text is not of that kind."""
    text = node.value
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if text == choice if isinstance(choice, str) else choice in _readings(type(choice), node):
                yield choice
    elif kind is str:
        if (node.quoted or not _looks_typed(text)) and not UNWRITABLE.search(text):
            yield text
    elif kind not in WORDS:
        raise TypeError(f"strict_yaml knows no annotation {kind}")
    elif node.quoted:
        return
    elif kind is NoneType and text in NULLS:
        yield None
    elif kind is bool and text.lower() in BOOLS:
        yield BOOLS[text.lower()]
    elif kind is int and INT.fullmatch(text) and abs(int(text.replace("_", ""))) < 2**63:
        yield int(text.replace("_", ""))
    elif kind is float and FLOAT.fullmatch(text) and math.isfinite(float(text.replace("_", ""))):
        yield float(text.replace("_", ""))


def _looks_typed(text: str) -> bool:
    """Whether a YAML reader would take this unquoted text for a number, a boolean or null."""
    return bool(FLOAT.fullmatch(text) or NOT_FINITE.fullmatch(text)) or text in NULLS or text.lower() in BOOLS


def _describe(kind: Any) -> str:
    """An annotation in words."""
    args = get_args(kind)
    if get_origin(kind) is Literal:
        return "one of " + ", ".join("null" if choice is None else str(choice) for choice in args)
    if get_origin(kind) is tuple and args[-1] is Ellipsis:
        return f"a list, each item {_describe(args[0])}"
    if get_origin(kind) is tuple:
        return f"a list of {len(args)} ({', '.join(map(_describe, args))})"
    return " or ".join(map(_describe, args)) if args else WORDS.get(kind, "a section with keys of its own")
