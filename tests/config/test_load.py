"""Laws of the strict config loader. The dataclasses here are its own; of the project's it knows the folder only."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from train.base.errors import UserError
from train.config.load import dump_yaml, load_yaml


@dataclass(frozen=True)
class Net:
    channels: tuple[int, ...]
    heads: int | tuple[int, ...] = 8
    size: tuple[int, int] = (32, 32)

    def __post_init__(self):
        if any(channel % 32 for channel in self.channels):
            raise ValueError(f"channels must be multiples of 32, not {self.channels}")


@dataclass(frozen=True)
class Loss:
    kind: Literal["l1", "l2"] = "l2"


@dataclass(frozen=True)
class Experiment:
    net: Net
    learning_rate: float = 1e-3
    steps: int = 100
    precision: Literal["no", "fp16", "bf16"] = "no"
    image_channels: Literal[1, 3] = 3
    shuffle: bool = True
    name: str = "run"
    pattern: str | None = None
    clip: float | None = 1.0
    loss: Loss | None = None
    eval: Net = field(default_factory=lambda: Net((32,)))


NET = "net:\n  channels: [32, 64]\n"


@pytest.fixture
def read(tmp_path):
    """Write a file and load it."""

    def read(text, *overrides, name="a.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return load_yaml(Experiment, path, overrides)

    return read


def refused(call, *args, **kwargs) -> str:
    """The message of the UserError, which is one line."""
    with pytest.raises(UserError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---- values


def test_what_is_not_written_keeps_its_default(read):
    assert read(NET) == Experiment(net=Net((32, 64)))


@pytest.mark.parametrize(
    ("line", "key", "value"),
    [
        ("learning_rate: 1e-4", "learning_rate", 1e-4),  # PyYAML: the string '1e-4'
        ("learning_rate: 1", "learning_rate", 1.0),
        ("learning_rate: .5", "learning_rate", 0.5),
        ("learning_rate: -1_000.5E+3", "learning_rate", -1000.5e3),
        ("steps: 1_000_000", "steps", 1_000_000),
        ("steps: -3", "steps", -3),
        ("precision: no", "precision", "no"),  # PyYAML: False
        ("precision: 'no'", "precision", "no"),
        ("image_channels: 1", "image_channels", 1),
        ("shuffle: off", "shuffle", False),
        ("shuffle: True", "shuffle", True),
        ("name: 1e-4 of it", "name", "1e-4 of it"),
        ("name: '2024'", "name", "2024"),
        ("name: 2024-01-02", "name", "2024-01-02"),  # PyYAML: a date
        ("name: 用户 🚶", "name", "用户 🚶"),
        ("clip: null", "clip", None),
        ("clip: 2", "clip", 2.0),
        ("pattern: ~", "pattern", None),
        ("pattern: 'null'", "pattern", "null"),
        ("loss: {kind: l1}", "loss", Loss("l1")),
        ("loss: null", "loss", None),
    ],
)
def test_the_annotation_says_what_a_scalar_means(read, line, key, value):
    result = getattr(read(NET + line), key)
    assert result == value
    assert type(result) is type(value)


def test_a_union_takes_the_arm_that_fits(read):
    assert read(NET + "  heads: 4").net.heads == 4
    assert read(NET + "  heads: [4, 8]").net.heads == (4, 8)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("learning_rate: fast", "learning_rate must be a finite number, not fast"),
        ('learning_rate: "1e-4"', 'learning_rate must be a finite number, not the text "1e-4"'),
        ("learning_rate: .nan", "a finite number, not .nan"),
        ("learning_rate: -.inf", "a finite number, not -.inf"),
        ("learning_rate: 1e999", "a finite number, not 1e999"),
        ("learning_rate:", "a finite number, not null"),
        ("steps: 1.5", "steps must be a whole number, not 1.5"),
        ("steps: true", "a whole number, not true"),
        ("steps: 010", "a whole number, not 010"),  # PyYAML: 8
        ("steps: 1:30", "a whole number, not 1:30"),  # PyYAML: 90
        ("steps: 9223372036854775808", "a whole number"),
        ("steps: 1" + "0" * 5000, "a whole number"),
        ("learning_rate: " + "9" * 30_000 + "x", "learning_rate must be a finite number, not 9"),
        ("learning_rate: " + "9" * 30_000 + ":1", "learning_rate must be a finite number, not 9"),
        ("steps: ١٢", "a whole number"),
        ("shuffle: 1", "shuffle must be true or false, not 1"),
        ("name: 2024", "name must be text, not 2024; put it in quotes"),
        ("name: yes", "name must be text, not yes; put it in quotes"),
        ("name: [a]", "name must be text, not a list of 1"),
        ("pattern: 3", "pattern must be text or null, not 3; put it in quotes"),
        ("precision: fp61", "precision must be one of no, fp16, bf16, not fp61 (did you mean fp16?)"),
        ("image_channels: 2", "image_channels must be one of 1, 3, not 2"),
        ("image_channels: true", "image_channels must be one of 1, 3, not true"),
        ("clip: x", "clip must be a finite number or null, not x"),
        ("net: 3", "net must be a section with keys of its own, not 3"),
        ("loss: 3", "loss must be a section with keys of its own or null, not 3"),
        ("net: {channels: 32}", "net.channels must be a list, each item a whole number, not 32"),
        ("net: {channels: [32, a]}", "net.channels[1] must be a whole number, not a"),
        ("net: {channels: [], size: [1]}", "net.size must be a list of 2 (a whole number, a whole number)"),
        ("net: {channels: [], heads: a}", "net.heads must be a whole number or a list, each"),
    ],
)
def test_a_value_of_wrong_type_is_named_with_file_line_and_key(read, line, expected):
    message = refused(read, f"# a comment\n\n{line}\n")
    assert "a.yaml, line 3: " in message
    assert expected in message


# ---- keys


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (NET + "stepps: 1", 'line 3: unknown key "stepps" in the top level (did you mean steps?)'),
        (NET + "  chanels: 1", 'line 3: unknown key "chanels" in section net (did you mean channels?)'),
        ("channels: 1", 'line 1: unknown key "channels" in the top level (did you mean net.channels or '),
        (NET + "  qqq: 1", 'line 3: unknown key "qqq" in section net; its keys are channels, heads, size'),
        ("steps: 1", 'line 1: the top level lacks the key "net", a section with keys of its own'),
        ("steps: 1\nnet: {heads: 2}", 'line 2: section net lacks the key "channels", a list, each'),
        (NET + "steps: 1\nname: a\nsteps: 1", 'line 5: key "steps" stands twice, first at '),
        ("net:\n  channels: [32]\n  channels: [32]", 'line 3: key "channels" stands twice, first at '),
        ("? [a]\n: 1", "line 1: a key must be a word"),
    ],
)
def test_a_wrong_key_is_named_with_its_line_and_the_nearest_key(read, text, expected):
    message = refused(read, text)
    assert "a.yaml, " in message
    assert expected in message


def test_a_check_of_a_dataclass_names_its_section_and_line(read):
    message = refused(read, "steps: 1\nnet:\n  heads: 2\n  channels: [33]\n")
    assert message.endswith("a.yaml, line 4: section net: channels must be multiples of 32, not (33,)")


# ---- files


def test_a_file_merges_over_its_base_key_by_key(read):
    read(NET + "steps: 7\n", name="root.yaml")
    read("base: root.yaml\nnet: {heads: 2}\n", name="middle.yaml")
    result = read("base: middle.yaml\nlearning_rate: 5\nnet:\n  size: [1, 2]\n")
    assert result == Experiment(net=Net((32, 64), heads=2, size=(1, 2)), steps=7, learning_rate=5.0)


def test_a_base_is_relative_to_the_file_that_names_it(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "root.yaml").write_text(NET)
    (tmp_path / "sub" / "middle.yaml").write_text("base: root.yaml")
    (tmp_path / "a.yaml").write_text("base: sub/middle.yaml")
    assert load_yaml(Experiment, tmp_path / "a.yaml").net == Net((32, 64))


def test_a_base_not_beside_the_file_is_one_of_the_projects(read, monkeypatch, tmp_path):
    (tmp_path / "configs").mkdir()
    monkeypatch.setattr("train.config.load.CONFIGS", tmp_path / "configs")
    read(NET + "steps: 2\n", name="configs/root.yaml")
    assert read("base: root.yaml\n").steps == 2
    assert "does not exist" in refused(read, "base: sub/root.yaml\n")
    read(NET + "steps: 4\n", name="root.yaml")
    assert read("base: root.yaml\n").steps == 4


def test_an_error_in_a_base_names_the_base(read):
    with pytest.raises(UserError):
        read(NET + "\nsteps: x\n", name="root.yaml")
    assert "root.yaml, line 4: steps must be" in refused(read, "base: root.yaml\n")


def test_a_key_corrected_above_its_base_is_no_error(read):
    with pytest.raises(UserError):
        read(NET + "steps: x\n", name="root.yaml")
    assert read("base: root.yaml\nsteps: 3\n").steps == 3


def test_a_cycle_of_bases_is_refused(read, tmp_path):
    (tmp_path / "b.yaml").write_text("steps: 1\nbase: ./a.yaml\n")
    assert "b.yaml, line 2: base: " in refused(read, "base: b.yaml")
    assert "leads back to this file" in refused(read, "base: a.yaml")


def test_a_missing_base_is_named_with_its_neighbour(read):
    read(NET, name="medium.yaml")
    message = refused(read, "steps: 1\nbase: meduim.yaml")
    assert "a.yaml, line 2: base: " in message
    assert "meduim.yaml does not exist (did you mean medium.yaml?)" in message


@pytest.mark.parametrize("base", ["[a]", "", "{a: b}", '"a\\0b"', "."])
def test_a_base_that_is_no_file_is_refused(read, base):
    assert "a.yaml, line 1: base" in refused(read, f"base: {base}")


def test_a_link_to_nowhere_is_no_missing_file(tmp_path):
    (tmp_path / "a.yaml").symlink_to("b.yaml")
    with pytest.raises(UserError, match=r"a\.yaml is a link to nowhere; copy the file that it means"):
        load_yaml(Experiment, tmp_path / "a.yaml")


def test_a_path_that_is_no_yaml_file_is_refused(tmp_path):
    assert "does not exist" in refused(load_yaml, Experiment, tmp_path / "none.yaml")
    assert "cannot be read (Is a directory)" in refused(load_yaml, Experiment, tmp_path)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    assert "is not UTF-8 text (byte 9)" in refused(load_yaml, Experiment, tmp_path / "latin.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "must be a mapping of keys to values, not empty"),
        ("# nothing", "not empty"),
        ("- a", "not a list of 1"),
        ("just text", "not just text"),
        ("a: 1\nb: [1", "line 2: not valid YAML"),
        ("a: 1\n\tb: 2", "line 2: not valid YAML"),
        ("a: 1\nb: \x00", "line 2: not valid YAML"),
        ('a: "\\UFFFFFFFF"', "not valid YAML"),
        ("a: 1\n---\nb: 1", "line 2: not valid YAML"),
        ("a: &x 1", "line 1: write the value out instead of an anchor"),
        ("a: 1\nb: *x", "line 2: write the value out instead"),
        ("a: &x [*x]", "line 1: write the value out instead"),
        ("a: 1\nb: !!python/object/apply:os.system [ls]", "line 2: write the value out instead"),
        ("a: !!str 3", "line 1: write the value out instead"),
        ("a: " + "[" * 50_000, "line 1: more than 20 levels of nesting"),
        ("{a: " * 50_000, "line 1: more than 20 levels of nesting"),
    ],
)
def test_text_that_is_no_plain_yaml_mapping_is_refused(read, text, expected):
    message = refused(read, text)
    assert "a.yaml" in message
    assert expected in message


# ---- alternatives

EITHER = [("net.heads", "net.size")]  # the sizes that stand lower give way to heads, and the other way round


@pytest.mark.parametrize("upper", ["file", "override", "override of the section"])
@pytest.mark.parametrize(
    ("lower", "key", "text", "expected"),
    [
        ("heads: 2", "size", "[1, 2]", Net((32, 64), size=(1, 2))),
        ("size: [1, 2]", "heads", "2", Net((32, 64), heads=2)),
        ("heads: 2", "heads", "4", Net((32, 64), heads=4)),
        ("heads: 2, size: [1, 2]", "heads", "4", Net((32, 64), heads=4)),
        ("heads: x", "size", "[1, 2]", Net((32, 64), size=(1, 2))),
    ],
)
def test_a_key_takes_the_place_of_its_alternatives_below(tmp_path, upper, lower, key, text, expected):
    (tmp_path / "root.yaml").write_text(f"net: {{channels: [32, 64], {lower}}}\n")
    above = f"net: {{{key}: {text}}}\n" if upper == "file" else ""
    (tmp_path / "a.yaml").write_text(f"base: root.yaml\n{above}")
    override = ("net", f"{{{key}: {text}}}") if "section" in upper else (f"net.{key}", text)
    overrides = [] if upper == "file" else [("--set", *override)]
    assert load_yaml(Experiment, tmp_path / "a.yaml", overrides, alternatives=EITHER).net == expected


def test_alternatives_in_one_place_are_left_to_the_dataclass(tmp_path):
    (tmp_path / "a.yaml").write_text("net: {channels: [32], heads: 2, size: [1, 2]}")
    assert load_yaml(Experiment, tmp_path / "a.yaml", alternatives=EITHER).net == Net((32,), 2, (1, 2))


# ---- overrides


def test_overrides_come_last_and_the_last_one_wins(read):
    result = read(
        NET + "steps: 1",
        ("--steps 2", "steps", "2"),
        ("--set steps=3", "steps", "3"),
        ("--learning_rate 1e-4", "learning_rate", "1e-4"),
        ("--set net.size=[1, 2]", "net.size", "[1, 2]"),
        ("--set loss.kind=l1", "loss.kind", "l1"),
    )
    assert result == Experiment(Net((32, 64), size=(1, 2)), 1e-4, steps=3, loss=Loss("l1"))


TYPED = [r"([0-9]+)_\d", "[0-9]+", "2024", "no", "a: b", "#1", "*", "C:\\x", '"', " x "]


@pytest.mark.parametrize("text", TYPED)
def test_an_override_of_a_str_is_taken_as_typed(read, text):
    assert read(NET, ("--set name", "name", text)).name == text
    assert read(NET, ("--set pattern", "pattern", text)).pattern == text


def test_an_override_can_say_null(read):
    assert read(NET + "pattern: x", ("--set pattern=null", "pattern", "null")).pattern is None


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("net.chanels", "3", 'unknown key "chanels" in section net (did you mean channels?)'),
        ("nett.channels", "3", 'unknown key "nett" in the top level (did you mean net?)'),
        ("steps", "[0-9]+", "steps must be a whole number, not [0-9]+"),
        ("name.x", "3", "name must be text, not a section"),
        ("steps.x", "3", "steps must be a whole number, not a section"),
        ("net", "3", "net must be a section"),
        ("base", "other.yaml", 'unknown key "base"'),
        ("", "3", 'unknown key ""'),
        (".".join("a" * 50_000), "3", 'unknown key "a"'),
    ],
)
def test_an_error_in_an_override_names_the_override(read, key, text, expected):
    assert refused(read, NET, ("--set X", key, text)).startswith("--set X: " + expected)


def test_a_check_names_only_the_override_that_it_speaks_of(read):
    overrides = [(f"--set {text}", *text.split("=")) for text in ("net.heads=2", "net.channels=[5]")]
    assert refused(read, NET, *overrides).startswith("--set net.channels=[5]: section net: channels must be")


def test_a_section_given_only_by_flags_is_said_to_be_in_no_file(read):
    message = refused(read, "steps: 1", ("--set net.heads=2", "net.heads", "2"))
    assert message.startswith('--set net.heads=2: section net, which no file has, lacks the key "channels"')


# ---- dump


ODD = ("no", "1e-4", "null", "", "a: b", "*x", "用户", " x\n\ty ", "\x85\u2028", "\\", "x " * 200, "=", "010")


def test_load_reads_back_what_dump_wrote(tmp_path):
    shared = Net((32, 64), heads=(1, 2))
    for number in (1e-4, 1e-05, 1.0, 3, -2.5e300, 5e-324, 0.1 + 0.2):
        for text in ODD:
            loss = Loss("l1")
            config = Experiment(shared, number, 2**63 - 1, "no", 1, False, text, text, None, loss, shared)
            path = tmp_path / "dumped.yaml"
            path.write_text(dump_yaml(config), encoding="utf-8", newline="\n")
            assert load_yaml(Experiment, path) == config


def test_dump_is_what_a_person_would_write():
    text = dump_yaml(Experiment(Net((32, 64))))
    assert text.startswith("net:\n  channels: [32, 64]\n  heads: 8\n  size: [32, 32]\nlearning_rate: 0.001\n")


def test_a_path_may_be_text(tmp_path):
    (tmp_path / "a.yaml").write_text(NET)
    assert load_yaml(Experiment, str(tmp_path / "a.yaml")) == load_yaml(Experiment, Path(tmp_path / "a.yaml"))
