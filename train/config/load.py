"""Strict YAML into (frozen) dataclasses: one file is one experiment, and no key is ever ignored.

A file may start from another (`base: medium.yaml`, relative to the file or else one of the project's configs); keys
merge one by one, and a key takes the place of its alternatives. Every mistake is a `UserError` that names the file, the
line and the key. PyYAML's node graph has the lines; what a scalar means, the dataclass's annotations say. Hence `1e-4`
is a float (PyYAML reads a string), `no` is a choice of `Literal["no", "fp16"]` (PyYAML reads False), and `010` and
`1:30` are no integers (PyYAML reads 8 and 90).

Annotations: int, float, bool, str, PathText, Literal, tuple[T, ...], tuple[T, U], unions, nested dataclasses.
"""

import dataclasses
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from train.base.errors import UserError, nearest, require
from train.base.first_bytes import open_file
from train.base.names import PathText, expanded

T = TypeVar("T")
Override = tuple[str, str, str]
"""(source, dotted key, value text), as in ("--set seed=8", "seed", "8"); errors name the source in place of a file."""

MAX_BYTES, MAX_PIECES = 250_000, 5_000  # of a file; keys, values and brackets in it: PyYAML takes a second for more
MAX_DEPTH = 20  # of nested lists and mappings; PyYAML's composer recurses, so this also bounds its stack
INT = re.compile(r"[-+]?(0|[1-9][0-9_]{,24})")  # bounded: int() refuses very long text
FLOAT = re.compile(r"[-+]?([0-9][0-9_]*(\.[0-9_]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?")
NOT_FINITE = re.compile(r"[-+]?\.?(inf|nan)", re.IGNORECASE)
BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
UNWRITABLE = re.compile(r"[\0\ud800-\udfff]")  # NUL and surrogates: no file's name or text can hold them
NULLS = {"", "~", "null", "Null", "NULL"}
CONFIGS = Path(__file__).parents[2] / "configs"
WORDS = {
    bool: "true or false", int: "a whole number", float: "a finite number", str: "text", PathText: "text",
    NoneType: "null",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Node:
    """A piece of YAML, with the place where it stands."""

    value: "str | list[Node] | dict[str, Node]"  # a scalar keeps its text
    origin: str  # "configs/demo.yaml, line 3", or the command line's "--set unet.num_heads=3"
    quoted: bool = False
    override: str | None = None  # a value's text as typed on the command line
    in_no_file: bool = False  # True: a section that only the command line mentions

    @property
    def is_null(self) -> bool:
        return isinstance(self.value, str) and self.value in NULLS and not self.quoted

    def __str__(self) -> str:
        if isinstance(self.value, str):
            text = self.value if len(self.value) <= 60 else self.value[:57] + "..."
            return f'the text "{text}"' if self.quoted else text or "null"
        return "a section" if isinstance(self.value, dict) else f"a list of {len(self.value)}"


def load_yaml(
    cls: type[T], path: str | Path, overrides: Sequence[Override] = (),
    derived: Mapping[str, str] = MappingProxyType({}), alternatives: Sequence[tuple[str, ...]] = (),
) -> T:
    """Read `path`, with its bases under it and `overrides` on top of it, into the dataclass `cls`.

    An override's text is YAML, but taken as typed where the key is a str: regular expressions and paths need no
    quotes. `derived` maps dotted keys to those that they follow from: left out, or equal to them. `alternatives` are
    groups of dotted keys (section.key) of which one is set: a file or override that sets one takes back what stands
    under it of the others. That no more than one is set, the dataclass itself has to check.
    """
    return _load(cls, _read_with_bases(Path(path), alternatives), overrides, derived, alternatives)


def change(
    config: T, overrides: Sequence[Override], derived: Mapping[str, str] = MappingProxyType({}),
    alternatives: Sequence[tuple[str, ...]] = (),
) -> T:
    """A config dataclass with these overrides, as if its own YAML text were the file."""
    root = _compose(dump_yaml(config, derived), lambda line: "the config")
    return _load(type(config), root, overrides, derived, alternatives)


def _load(
    cls: type[T], root: Node, overrides: Sequence[Override], derived: Mapping[str, str],
    alternatives: Sequence[tuple[str, ...]],
) -> T:
    for source, dotted_key, text in overrides:
        root = _overlay(root, _read_override(source, dotted_key, text), alternatives, from_file=False)
    for key, source in derived.items():
        section, _, name = key.rpartition(".")
        place, node = _at(root, section), _at(root, source)
        if node and place and isinstance(place.value, dict):
            place.value.setdefault(name, node)
        if place:  # moved behind its source's section, so that a mistake there is told of the key that the file has
            top = key.partition(".")[0]
            root.value[top] = root.value.pop(top)
    config = _section(cls, root, "")
    for key, source in derived.items():
        value, wanted = attrgetter(key)(config), attrgetter(source)(config)
        if value != wanted:
            said = f"{key} is {value}, but it follows from {source}, which is {wanted}; leave it out"
            raise UserError(f"{(_at(root, key) or _at(root, source)).origin}: {said}")
    return config


def describe(cls: type, dotted_key: str) -> str:
    """What a key takes, in words, as in "one of no, fp16, bf16"."""
    for key in dotted_key.split("."):
        cls = get_type_hints(cls)[key]
    return _describe(cls)


def dump_yaml(config: Any, derived: Iterable[str] = ()) -> str:
    """The YAML text of a config dataclass without its `derived` keys; `load_yaml` turns it into an equal object."""
    values = dataclasses.asdict(config)
    for key in derived:
        section, _, name = key.rpartition(".")
        del values[section][name]
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True)


class Dumper(yaml.SafeDumper):
    """Writes what `load_yaml` accepts: the text "1e-4" in quotes, shared tuples without an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        return True

    def represent_text(self, data: str) -> yaml.Node:
        quote = '"' if _looks_typed(data) or not data.isprintable() else None  # else PyYAML loses a \x85
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=quote)


Dumper.add_representer(tuple, lambda dumper, data: dumper.represent_sequence("tag:yaml.org,2002:seq", data, True))
Dumper.add_representer(str, Dumper.represent_text)


def _at(root: Node, dotted_key: str) -> Node | None:
    """The node of a key; None where it, or its section, is not there."""
    node: Node | None = root
    for key in dotted_key.split("."):
        node = node.value.get(key) if node and isinstance(node.value, dict) else None
    return node


# ---- text to nodes


def _read_with_bases(
    path: Path, alternatives: Sequence[tuple[str, ...]], asked_by: str = "", above: tuple[str, ...] = ()
) -> Node:
    """The root mapping of `path` merged over its base, its base's base, and so on.

    `asked_by` begins its errors: the file and line whose base it is, if any; `above` are the files that led here.
    """
    root, real_path = _read_file(path, asked_by), os.path.realpath(path)
    cycle = f"{asked_by}{path} leads back to this file, so neither can start from the other"
    require(real_path not in above, cycle)
    base = root.value.pop("base", None)
    if base is None:
        return root
    named = isinstance(base.value, str) and base.value
    require(named, f"{base.origin}: base must be the name of a YAML file, not {base}")
    beside, ours = path.parent / _expanded(base.value, f"{base.origin}: base: "), CONFIGS / base.value
    of_project = ours.parent == CONFIGS and os.path.isfile(ours) and not os.path.lexists(beside)
    lower = ours if of_project else beside
    under = _read_with_bases(lower, alternatives, f"{base.origin}: base: ", (*above, real_path))
    return _overlay(under, root, alternatives)


def _read_file(path: Path, asked_by: str) -> Node:
    try:
        with open_file(path) as file:
            content = file.read(MAX_BYTES + 1)
        require(len(content) <= MAX_BYTES, f"{asked_by}{path} has more than {MAX_BYTES:,} bytes; give a config's file")
        text = content.decode("utf-8")
    except FileNotFoundError:
        require(not path.is_symlink(), f"{asked_by}{path} is a link to nowhere; copy the file that it means")
        near = nearest(path.name, (other.name for other in path.parent.glob("*.yaml")))
        raise UserError(f"{asked_by}{path} does not exist{near}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{asked_by}{path} is not UTF-8 text (byte {error.start})") from None
    except (OSError, ValueError) as error:  # a directory, no permission; a NUL in the name is a ValueError
        raise UserError(f"{asked_by}{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    root = _compose(text, lambda line: f"{path}, line {line + 1}")
    is_mapping = root and isinstance(root.value, dict)
    require(is_mapping, f"{path} must be a mapping of keys to values, not {root or 'empty'}")
    return root


def _read_override(source: str, dotted_key: str, text: str) -> Node:
    """A root mapping that holds nothing but this key."""
    try:
        node = _compose(text, lambda line: source)
    except UserError:
        node = None  # not YAML, such as the pattern [0-9]+: taken as text, which all keys but those of a str refuse
    node = dataclasses.replace(node or Node(text, source), override=text)
    for key in reversed(dotted_key.split(".")):
        node = Node({key: node}, source, in_no_file=True)
    return node


def _compose(text: str, where: Callable[[int], str]) -> Node | None:
    """YAML text to a Node; None where it holds nothing. `where` turns a line number, from 0, into an origin."""
    try:
        depth = 0
        # A flat list, seen before the composer, which recurses.
        for pieces, event in enumerate(yaml.parse(text, Loader=yaml.SafeLoader)):
            line = where(event.start_mark.line)
            require(pieces < MAX_PIECES, f"{line}: more than {MAX_PIECES:,} keys and values; give a config's file")
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            require(depth <= MAX_DEPTH, f"{line}: more than {MAX_DEPTH} levels of nesting")
            plain = not (getattr(event, "anchor", None) or getattr(event, "tag", None))
            require(plain, f"{line}: write the value out instead of an anchor (&), alias (*) or tag (!)")
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
        require(isinstance(key, yaml.ScalarNode), f"{line}: a key must be a word, not a list or mapping")
        first = mapping.get(key.value)
        require(first is None, f'{line}: key "{key.value}" stands twice, first at {first and first.origin}')
        # A value's line is that of its key, where a reader looks for it, even if it is a list on the lines below.
        mapping[key.value] = dataclasses.replace(_node(value, where), origin=line)
    return Node(mapping, origin)


def _overlay(under: Node, over: Node, alternatives: Sequence[tuple[str, ...]], from_file: bool = True) -> Node:
    """`over` merged into `under`, which loses its keys of each group of alternatives of which `over` sets one."""
    for group in alternatives:
        if any((node := _at(over, key)) and not node.is_null for key in group):
            for section, _, name in (key.rpartition(".") for key in group):
                place = _at(under, section)
                if place and isinstance(place.value, dict):
                    place.value.pop(name, None)
    return _merge(under, over, from_file)


def _merge(under: Node, over: Node, from_file: bool = True) -> Node:
    """`over` on top of `under`: mappings merge key by key, anything else is replaced.

    A merged section has the origin of the upper file; an override does not change a section's origin.
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
    kinds, values = get_type_hints(cls), {}
    for key, value in node.value.items():
        if key not in kinds:
            sections = [(at, kind) for at, kind in kinds.items() if dataclasses.is_dataclass(kind)]
            deeper = " or ".join(f"{at}.{key}" for at, kind in sections if key in get_type_hints(kind))
            hint = nearest(key, kinds) or f"; its keys are {', '.join(kinds)}"
            hint = f" (did you mean {deeper}?)" if deeper else hint  # such as unet.channels for channels
            raise UserError(f'{value.origin}: unknown key "{key}" in {section}{hint}')
        values[key] = _value(kinds[key], value, f"{name}.{key}" if name else key)
        if PathText in (kinds[key], *get_args(kinds[key])) and values[key]:
            values[key] = _expanded(values[key], f"{value.origin}: {name}.{key}: ")
    absent = ", which no file has," if node.in_no_file else ""
    for field in dataclasses.fields(cls):
        given = field.name in values or not (field.default is field.default_factory is dataclasses.MISSING)
        lacks = f'lacks the key "{field.name}", {_describe(kinds[field.name])}'
        require(given, f"{node.origin}: {section}{absent} {lacks}")
    try:
        return cls(**values)
    except (ValueError, UserError) as error:  # the dataclass's own checks, in __post_init__
        named = [_at(node, word.rstrip(".")) for word in re.findall(r"[\w.]+", str(error))]  # the keys in the message
        origins = [value.origin for value in named if value and not isinstance(value.value, dict)]
        where = " and ".join(dict.fromkeys(origins)) or node.origin
        raise UserError(f"{where}: {f'{section}: ' if name else ''}{error}") from error


def _expanded(path: str, where: str) -> str:
    try:
        return expanded(path)
    except UserError as error:
        raise UserError(f"{where}{error}") from None


def _value(kind: Any, node: Node, name: str) -> Any:
    """One value as the annotation `kind`; `name` is its dotted key, for errors."""
    kind, args = str if kind is PathText else kind, get_args(kind)
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
    elif isinstance(node.value, str) and {str, PathText} & {kind, *args}:
        hint = "; put it in quotes if it is text"
        if UNWRITABLE.search(node.override or node.value):
            hint = ", which holds a character that no file can hold (of a letter, set PYTHONUTF8=1)"
    raise UserError(f"{node.origin}: {name} must be {_describe(kind)}, not {node}{hint}")


def _readings(kind: Any, node: Node) -> Iterator[Any]:
    """Yields a scalar's value as the annotation `kind`, or nothing where the text is not of that kind."""
    text, digits = node.value, node.value.replace("_", "")
    if get_origin(kind) is Literal:
        for choice in get_args(kind):
            if text == choice if isinstance(choice, str) else choice in _readings(type(choice), node):
                yield choice
    elif kind is str:
        if (node.quoted or not _looks_typed(text)) and not UNWRITABLE.search(text):
            yield text
    elif kind not in WORDS:
        raise TypeError(f"train.config.load knows no annotation {kind}")
    elif node.quoted:
        return
    elif kind is NoneType and node.is_null:
        yield None
    elif kind is bool and text.lower() in BOOLS:
        yield BOOLS[text.lower()]
    elif kind is int and INT.fullmatch(text) and abs(int(digits)) < 2**63:
        yield int(digits)
    elif kind is float and FLOAT.fullmatch(text) and math.isfinite(float(digits)):
        yield float(digits)


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
