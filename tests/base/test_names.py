"""Names in either form of their accents are one; `~` and `$NAME` in paths mean what they mean to a shell."""

import os
import subprocess

import pytest

from tests.tiny import PATH, tiny
from train.base.errors import UserError
from train.base.names import composed, expanded, located
from train.config.cli import Parser, a_path
from train.config.schema import Config

NFC, NFD = "\u00e9", "e\u0301"  # an accent in one code point, and in two


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("WHERE", "some where")
    monkeypatch.delenv("NOWHERE", raising=False)


def test_a_path_is_found_in_either_form_of_each_of_its_parts(tmp_path):
    path = tmp_path / f"{NFD}1" / f"{NFC}2" / f"{NFD}3"
    path.mkdir(parents=True)
    assert composed(NFD) == NFC
    for form in (NFC, NFD):
        assert located(tmp_path, f"{form}1/{form}2/{form}3").samefile(path)
        assert located(tmp_path, f"{form}1/{form}x/y") == tmp_path / f"{NFD}1" / f"{form}x" / "y" or form == NFD
    assert located(tmp_path / "none", NFC) == tmp_path / "none" / NFC


@pytest.mark.parametrize(
    "path",
    ["~", "~/a b", "$WHERE/x", "a/${WHERE}b/$WHERE", "~/$WHERE", "a~b", "a/~/b", "x$", "$/a", "a$.b", "~root/x"],
)
def test_a_path_is_expanded_as_a_shell_does(path):
    quoted = path.replace(" ", "\\ ").replace("$WHERE", '"$WHERE"').replace("${WHERE}", '"${WHERE}"')
    shell = subprocess.run(["sh", "-c", f"printf %s {quoted}"], capture_output=True, text=True, check=True)
    assert expanded(path) == shell.stdout


def test_an_unset_variable_or_unknown_home_is_refused_by_name():
    for path, said in (
        ("$NOWHERE/x", "the variable NOWHERE is not set"), ("a/${NOWHERE}", "the variable NOWHERE is not set"),
        ("~nobody-of-that-name/x", "there is no home of nobody-of-that-name on this machine"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=said):
            expanded(path)


def test_what_is_there_under_the_very_name_is_meant(tmp_path):
    for name in ("$NOWHERE", "~", "$WHERE"):
        os.mkdir(name)
        assert expanded(name) == name


def test_paths_are_expanded_in_files_settings_flags_and_bases(tmp_path):
    """All paths of a config, whichever way they come; its texts are not."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "base.yaml").write_text(PATH.read_text())
    (tmp_path / "mine.yaml").write_text(
        "base: ~/base.yaml\ndata: {dir: ~/data, recording_pattern: ^$HOME}\nlatents: {vae_path: $HOME/v}\n"
        "vae_loss: {perceptual_weights: ~/vgg.pth}\nvae_training: {output_dir: ~/$WHERE}\n"
    )
    config = Config.read(tmp_path / "mine.yaml", [("--output_dir ~/o", "ldm_training.output_dir", "~/o")])
    assert config.data.dir == f"{home}/data"
    assert config.data.recording_pattern == "^$HOME"
    assert config.latents.vae_path == f"{home}/v"
    assert config.vae_loss.perceptual_weights == f"{home}/vgg.pth"
    assert (config.vae_training.output_dir, config.ldm_training.output_dir) == (f"{home}/some where", f"{home}/o")
    assert tiny("latents.vae_path=~/v").latents.vae_path == f"{home}/v"
    parser = Parser("x", "x")
    parser.add_argument("--model", type=a_path)
    assert parser.parse_args(["--model", "~/m"]).model == home / "m"


def test_a_path_that_cannot_be_expanded_is_told_where_it_stands(tmp_path):
    (tmp_path / "mine.yaml").write_text(f"base: {PATH}\ndata: {{dir: $NOWHERE/x}}\n")
    with pytest.raises(UserError, match=r"mine.yaml, line 2: data.dir: \$NOWHERE/x: the variable NOWHERE is not set"):
        Config.read(tmp_path / "mine.yaml")
    parser = Parser("x", "x")
    parser.add_argument("--model", type=a_path)
    with pytest.raises(UserError, match=r"argument --model: \$NOWHERE: the variable NOWHERE is not set"):
        parser.parse_args(["--model", "$NOWHERE"])
