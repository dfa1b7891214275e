"""An optional package that is there but broken is one that is not there, and a line says so."""

import sys

import pytest

from train.base.optional import optional

BROKEN = ("raise TypeError('metaclass\\nconflict')", "raise AttributeError('np.bool8')", "raise ImportError('libx.so')",
          "import not_there_either", "x = 1 / 0", "raise SystemError('abi')", "(")  # fmt: skip


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Makes a package of this source; it is forgotten afterwards."""

    def package(source: str) -> None:
        (tmp_path / "extra_package").mkdir()
        (tmp_path / "extra_package" / "__init__.py").write_text(source)
        monkeypatch.syspath_prepend(tmp_path)

    yield package
    sys.modules.pop("extra_package", None)


def test_a_package_that_is_there_is_imported(package, capsys):
    package("x = 3")
    assert optional("extra_package", "extra_package").x == 3
    assert capsys.readouterr() == ("", "")


def test_a_package_that_is_not_there_is_none_without_a_word(capsys):
    assert optional("torch.utils.extra", "package_that_nobody_has") is None
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("source", BROKEN)
def test_a_broken_package_is_none_with_a_line(package, capsys, monkeypatch, source):
    package(source)
    assert optional("extra_package", "extra_package") is None
    said = capsys.readouterr().err
    assert said.startswith("extra_package is installed, but cannot be imported (")
    assert said.endswith("); done without it\n")
    assert said.count("\n") == 1
    monkeypatch.setenv("RANK", "1")
    assert optional("extra_package", "extra_package") is None
    assert capsys.readouterr().err == ""
