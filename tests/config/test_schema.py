"""One experiment: its sections fit together, and what follows from others is written once."""

from operator import attrgetter
from pathlib import Path

import pytest
import torch
import yaml

from nets.condition import UserConditionEncoder, UserEncoderConfig
from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from tests.tiny import PATH, tiny
from train.base.errors import UserError
from train.config.cli import make_parser, read_config
from train.config.schema import DERIVED, Config

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))


def count(model: torch.nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


# ---- files


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_loads_and_its_dump_is_the_same_config(path, tmp_path):
    config = Config.read(path)
    (tmp_path / "again.yaml").write_text(config.as_yaml(), encoding="utf-8")
    assert Config.read(tmp_path / "again.yaml") == config


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("medium", 139_680_132), ("tight", 137_124_228), ("light", 50_165_060), ("sd", 859_520_964)],
)
def test_the_presets_have_the_parameters_of_the_design(name, parameters):
    config = Config.read(ROOT / "configs" / f"{name}.yaml")
    with torch.device("meta"):
        assert count(UNet2DConditionModel(config.unet)) == parameters
        if name != "sd":
            assert count(AutoencoderKL(config.vae)) == 42_928_871
        users = UserConditionEncoder(UserEncoderConfig(config.user_encoder.dim, num_users=31))
    assert count(users) == 32 * config.unet.cross_attention_dim


# ---- sections that do not fit


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["user_encoder.dim=96"], "user_encoder.dim is 96, but it follows from unet.cross_attention_dim, which is 12"),
        (["unet.latent_channels=8"], "unet.latent_channels is 8, but it follows from vae.latent_channels, which is 4"),
        (["vae.image_channels=1"], "vae.image_channels is 1, but it follows from data.channels, which is 3"),
        (["data.resolution=17"], "data.resolution 17 cannot be halved 1 times"),
        (["vae_loss.adversarial_weight=1"], "adversarial_weight needs larger images: a data.resolution of at least 24"),
        (["vae_loss.perceptual_weight=1", "vae_loss.perceptual_weights=x", "data.resolution=8"],
         "perceptual_weight needs larger images: a data.resolution of at least 16, not 8"),
        (["sampling.steps=1001"], "sampling.steps is 1001, more than the 1000"),
        (["schedule.num_train_timesteps=3"], "sampling.steps is 4, more than the 3"),
        (["data.horizontal_flip=true"], "flipped images have no cached latents"),
        (["data.vertical_flip=true"], "flipped images have no cached latents"),
        (["seed=-1"], "seed must be 0 or more, not -1"),
        (["unet.num_heads=5"], "channels 8 cannot be divided among 5 num_heads"),
        (["unet.norm_groups=7"], "channels 8 cannot be divided into 7 norm_groups"),
        (["vae.norm_groups=5"], "channels 8 cannot be divided into 5 norm_groups"),
        (["vae_loss.perceptual_weight=1"], "perceptual_weight needs perceptual_weights"),
        (["vae_loss.kl_weight=-1"], "must not be negative"),
        (["vae_loss.border_weight=0"], "border_weight must be positive, not 0"),
        (["ldm_training.batch_size=0"], "batch_size must be at least 1, not 0"),
        (["ldm_training.ema_decay=1"], r"ema_decay must be in \[0, 1\), not 1"),
        (["ldm_training.optimizer.learning_rate=0"], "learning_rate and max_grad_norm must be positive"),
        (["schedule.zero_terminal_snr=true", "schedule.prediction=noise"], "0/0 at the last timestep"),
        (["sampling.guidance=-1"], "guidance is -1"),
        (["sampling.batch_size=0"], "batch_size must be at least 1, not 0"),
        (["user_encoder.dropout=1"], r"dropout must be in \[0, 1\), not 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused_with_the_numbers(settings, words):
    with pytest.raises(UserError, match=words) as caught:
        tiny(*settings)
    assert "\n" not in str(caught.value)
    assert any(where in str(caught.value) for where in (str(PATH), *(f"--set {setting}" for setting in settings)))


def test_flips_go_with_latents_that_are_not_cached():
    assert tiny("data.horizontal_flip=true", "latents.cache_latents=false").data.horizontal_flip


# ---- the length of a training, in epochs or in steps


@pytest.mark.parametrize("stage", ["vae", "ldm"])
@pytest.mark.parametrize(
    ("file", "settings", "expected"),
    [
        ("num_steps: 9", [], (None, 9)),
        ("num_epochs: 5", [], (5, None)),
        ("num_steps: null", [], (2, None)),
        ("num_steps: 9, num_epochs: null", [], (None, 9)),
        ("num_steps: 9", ["num_epochs=3"], (3, None)),
        ("num_steps: 9", ["num_epochs=3", "num_steps=4"], (None, 4)),
        ("num_steps: 9", ["num_steps=4", "num_epochs=3"], (3, None)),
        ("num_steps: 9", ["num_steps=null", "num_epochs=3"], (3, None)),
        ("num_steps: 9", ["num_epochs=3", "num_steps=null"], (3, None)),
        ("batch_size: 1", ["num_steps=4"], (None, 4)),
    ],
)
def test_the_last_to_set_a_length_decides_epochs_or_steps(tmp_path, stage, file, settings, expected):
    section, path = f"{stage}_training", tmp_path / "a.yaml"
    path.write_text(f"base: {PATH}\n{section}: {{{file}}}\n")
    config = Config.read(path, [("--set", *f"{section}.{setting}".split("=")) for setting in settings])
    assert (config.training(stage).num_epochs, config.training(stage).num_steps) == expected
    other = "ldm" if stage == "vae" else "vae"
    assert config.training(other) == tiny().training(other)


def test_two_lengths_in_one_file_or_none_are_refused(file):
    two = file(("num_epochs: 2\n  batch_size: 4\n  ema", "num_epochs: 2\n  num_steps: 9\n  batch_size: 4\n  ema"))
    line = line_of(two, "  num_steps:")
    said = "section ldm_training: num_epochs is 2 and num_steps 9; set only one of them"
    assert refused(two) == f"{two}, line {line - 1} and {two}, line {line}: {said}"
    none = file(("num_epochs: 2\n  batch_size: 4\n  ema", "batch_size: 4\n  ema"))
    said = "section ldm_training: num_epochs or num_steps must be set"
    assert refused(none) == f"{none}, line {line_of(none, 'ldm_training:')}: {said}"
    setting = "ldm_training.num_epochs=null"
    assert refused(PATH, [(f"--set {setting}", *setting.split("="))]) == f"--set {setting}: {said}"


# ---- widths that follow from others


def changed(*edits: tuple[str, str]) -> str:
    """The text of the small config, in which each first text is replaced by its second."""
    text = PATH.read_text(encoding="utf-8")
    for before, after in edits:
        assert text.count(before) == 1
        text = text.replace(before, after)
    return text


REPEATED = [
    ("user_encoder: {", "user_encoder: {dim: 12, "),
    ("vae: {", "vae: {latent_channels: 4, image_channels: 3, "),
    ("unet:\n", "unet:\n  latent_channels: 4\n"),
]
WIDTHS = [
    ("user_encoder.dim", "unet.cross_attention_dim", "48", 48),
    ("unet.latent_channels", "vae.latent_channels", "8", 8),
    ("vae.image_channels", "data.channels", "1", 1),
]


@pytest.fixture
def file(tmp_path):
    """Writes a file of these edits of the small config."""

    def write(*edits: tuple[str, str], name: str = "a.yaml") -> Path:
        (tmp_path / name).write_text(changed(*edits), encoding="utf-8")
        return tmp_path / name

    return write


def line_of(path: Path, start: str) -> int:
    lines = path.read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if line.startswith(start))


def refused(*arguments) -> str:
    with pytest.raises(UserError) as caught:
        Config.read(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_width_that_follows_is_tested_here():
    assert {key: source for key, source, *_ in WIDTHS} == DERIVED


def derived_in(text: str) -> list[str]:
    """The keys that follow from others, and are written all the same."""
    values = yaml.safe_load(text)
    return [key for key in DERIVED if key.split(".")[1] in values.get(key.split(".")[0], {})]


@pytest.mark.parametrize(("key", "source", "text", "value"), WIDTHS)
def test_a_width_left_out_follows_the_one_it_depends_on(key, source, text, value):
    config = tiny(f"{source}={text}")
    assert attrgetter(key)(config) == attrgetter(source)(config) == value
    assert attrgetter(key)(tiny()) != value


def test_a_width_that_follows_is_written_in_no_config_of_ours():
    for path in [*CONFIGS, PATH]:
        assert not derived_in(path.read_text(encoding="utf-8"))


def test_a_file_that_repeats_the_widths_alike_is_the_same_config(file):
    """As those do that were written before the widths followed."""
    assert Config.read(file(*REPEATED)) == tiny()


@pytest.mark.parametrize(("key", "source", "text", "value"), WIDTHS)
def test_a_file_that_repeats_a_width_otherwise_is_refused(file, key, source, text, value):
    """By the line of the repetition, whichever of the two was changed."""
    path = file(*REPEATED)
    line = line_of(path, {"user_encoder.dim": "user_encoder:", "unet.latent_channels": "  latent_"}.get(key, "vae:"))
    message = refused(path, [(f"--set {source}={text}", source, text)])
    said = f"{key} is {attrgetter(key)(tiny())}, but it follows from {source}, which is {value}; leave it out"
    assert message == f"{path}, line {line}: {said}"
    assert f"--set X: {key} is {value}, but it follows from {source}" in refused(path, [("--set X", key, text)])


def test_a_width_repeated_in_a_base_is_refused_by_its_line(file, tmp_path):
    base = file(*REPEATED, name="old.yaml")
    above = tmp_path / "above.yaml"
    above.write_text("base: old.yaml\nunet: {cross_attention_dim: 24}\n")
    where = f"{base}, line {line_of(base, 'user_encoder:')}: "
    assert refused(above).startswith(f"{where}user_encoder.dim is 12, but it follows from unet.cross_attention_dim, ")
    above.write_text("base: old.yaml\nunet: {cross_attention_dim: 24}\nuser_encoder: {dim: 24}\n")
    assert Config.read(above) == tiny("unet.cross_attention_dim=24")


@pytest.mark.parametrize("edits", [[], REPEATED], ids=["left out", "repeated"])
def test_the_width_flag_works_whether_a_file_repeats_it_or_not(file, edits):
    arguments = ["--config", str(file(*edits)), "--cross_attention_dim", "24"]
    config = read_config(make_parser("ldm", "", "ldm").parse_args(arguments), "ldm")
    assert config == tiny("unet.cross_attention_dim=24")


@pytest.mark.parametrize(("before", "after", "words"), [
    ("cross_attention_dim: 12", "cross_attention_dim: wide", "unet.cross_attention_dim must be a whole number"),
    ("cross_attention_dim: 12", "cross_attention_dim: 0", "section unet: "),
    ("  cross_attention_dim: 12\n", "", 'section unet lacks the key "cross_attention_dim"'),
    ("resolution: 16", "resolution: 16, channels: 2", "data.channels must be one of 1, 3, not 2"),
])  # fmt: skip
def test_a_mistake_is_told_of_the_key_that_is_in_the_file(file, before, after, words):
    message = refused(file((before, after)))
    assert words in message
    assert not any(key in message for key in DERIVED)
    assert "user_encoder" not in message


@pytest.mark.parametrize("settings", [
    [], ["unet.cross_attention_dim=24"], ["vae.latent_channels=8"], ["data.channels=1"],
])  # fmt: skip
def test_a_saved_config_omits_what_follows_and_reads_back_equal(tmp_path, settings):
    config = tiny(*settings)
    (tmp_path / "config.yaml").write_text(config.as_yaml(), encoding="utf-8")
    assert Config.read(tmp_path / "config.yaml") == config
    assert derived_in(config.as_yaml()) == []
