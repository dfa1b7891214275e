"""Bad input, and the sentence that the user gets: no traceback, exit status 2, nothing written.

The tables are to be read: left what was done, right what is said. Every row runs the real command in a folder with
images in `data/`, a trained VAE in `v/`, a trained LDM in `l/` and images that it generated in `l/generated/`. Where
a sentence has "...", any words may stand: those of PyYAML, Pillow or the operating system, or such as are no law here.
"""

import hashlib
import io
import json
import os
import random
import re
import shlex
import shutil
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import tiny
from train import augment, check, evaluate, ldm, memcheck, sample, simulate, vae
from train.base.errors import UserError
from train.config import cli
from train.config.schema import Config
from train.runs import model_folder
from train.runs.checkpoint import load_latest

ROOT = Path(__file__).parents[2]
COMMANDS = {
    "augment": augment, "check": check, "evaluate": evaluate, "ldm": ldm, "memcheck": memcheck, "sample": sample,
    "simulate": simulate, "vae": vae,
}  # fmt: skip
VAE = "vae --config tiny.yaml --data_dir data --output_dir new"
LDM = "ldm --config tiny.yaml --data_dir data --vae_path v/final_model --output_dir new"
SAMPLE = "sample --model l/final_model --output_dir new"
EVALUATE = "evaluate --model l/final_model --images l/generated"
AUGMENT = "augment --model l/final_model --images l/generated --output_dir new --guidance 1.5"
NO_LDM = "there is no trained LDM here; run make train-ldm, or give the final_model folder of one, or a checkpoint"
RESUME_VAE = "vae --config tiny.yaml --data_dir data --output_dir v --num_epochs 1"
RESUME_LDM = "ldm --config tiny.yaml --data_dir data --vae_path v/final_model --output_dir l --num_epochs 1"


def call(line: str, monkeypatch, capsys) -> tuple[int | None, str]:
    """The exit status of a command line, and what stood on stderr, progress bars left out."""
    command, *arguments = shlex.split(line)
    monkeypatch.setattr(sys, "argv", [command, *arguments])
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning of torch or Pillow is no sentence either
        with pytest.raises(SystemExit) as caught:
            cli.run(COMMANDS[command].main)
    lines = capsys.readouterr().err.replace("\r", "\n").split("\n")
    bar = re.compile(r"%\||\?\w+/s\]")
    return caught.value.code, "\n".join(line for line in lines if line.strip() and not bar.search(line))


def says(sentence: str, phrase: str) -> bool:
    """Whether it is this sentence, in which each "..." stands for any words."""
    return re.fullmatch(".*".join(map(re.escape, phrase.split("..."))), sentence) is not None


def contents(folder: Path) -> dict[str, bytes | str]:
    """Everything in a folder, with the bytes of the files."""
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
        for path in sorted(folder.rglob("*"))
    }


def picture(path: str, seed: int = 0, **options) -> Path:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 20, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path, **options)
    return Path(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("trained")
    shutil.copy(Path(__file__).parents[1] / "tiny.yaml", folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for number in range(12):
            picture(f"data/{('ID1', 'ID2', 'ID10')[number % 3]}/{number // 3}.png", number)
        made = SAMPLE.replace("new", "l/generated --num_images 1")
        for line in (VAE.replace("new", "v"), LDM.replace("new", "l"), made):
            command, *arguments = shlex.split(line)
            COMMANDS[command].main([*arguments, *(["--num_epochs", "1"] if command != "sample" else [])])
        for first in folder.glob("*/checkpoints/step_00000000"):  # longer runs no longer have it
            shutil.rmtree(first)
    return folder


@pytest.fixture
def world(trained, tmp_path, monkeypatch) -> Path:
    """A copy of it, to be spoilt; the working folder."""
    shutil.copytree(trained, tmp_path / "world")
    monkeypatch.chdir(tmp_path / "world")
    return tmp_path / "world"


@pytest.fixture
def refused(world, monkeypatch, capsys) -> Callable[[str, str], None]:
    def refused(line: str, phrase: str) -> None:
        """The command ends with status 2 and a sentence like this, and every byte is as before."""
        before = contents(world)
        status, said = call(line, monkeypatch, capsys)
        notes, _, last = f"\n{said}".rpartition("\nerror: ")
        assert says(last, phrase), last
        assert all(note.startswith("checkpoint passed over: ") for note in notes.split("\n")[1:])
        assert "\n" not in last
        assert status == 2
        after = contents(world)
        assert {path: after.get(path) for path in before} == before
        assert not Path("new").exists()

    return refused


# ---- configs: what stands in mine.yaml below its first line, `base: tiny.yaml`

CONFIGS = {
    "vae: {chanels: [8, 16]}": 'mine.yaml, line 2: unknown key "chanels" in section vae (did you mean channels?)',
    "chanels: [8, 16]": 'mine.yaml, line 2: unknown key "chanels" in the top level; its keys are seed, data, vae, ...',
    "channels: [8, 16]":
        'mine.yaml, line 2: unknown key "channels" in the top level (did you mean data.channels or ...?)',
    "vae_training: {learning_rate: 1e-3}":
        'mine.yaml, line 2: unknown key "learning_rate" in ... (did you mean optimizer.learning_rate?)',
    "vae_training: {optimizer: {learning_rate: fast}}":
        "mine.yaml, line 2: vae_training.optimizer.learning_rate must be a finite number, not fast",
    'vae_training: {optimizer: {learning_rate: "1e-4"}}':
        'mine.yaml, line 2: vae_training.optimizer.learning_rate must be a finite number, not the text "1e-4"',
    "vae_training: {optimizer: {learning_rate: 1e4}}":
        "mine.yaml, line 2: section vae_training.optimizer: learning_rate must be at most 10, not 10000.0",
    "vae_training: {batch_size: 2.5}": "mine.yaml, line 2: vae_training.batch_size must be a whole number, not 2.5",
    "vae_training: {batch_size: true}": "mine.yaml, line 2: vae_training.batch_size must be a whole number, not true",
    "vae_training: {batch_size: 0}": "mine.yaml, line 2: section vae_training: batch_size must be at least 1, not 0",
    "vae_training: {batch_size:}": "mine.yaml, line 2: vae_training.batch_size must be a whole number, not null",
    "vae_training: {mixed_precision: fp61}":
        "mine.yaml, line 2: vae_training.mixed_precision must be one of no, fp16, bf16, not fp61 (did you mean fp16?)",
    "vae_training: {ema_decay: 1}": "mine.yaml, line 2: section vae_training: ema_decay must be in [0, 1), not 1.0",
    "vae_training: 7": "mine.yaml, line 2: vae_training must be a section with keys of its own, not 7",
    "vae: {channels: 8}": "mine.yaml, line 2: vae.channels must be a list, each item a whole number, not 8",
    "vae: {channels: [8, wide]}": "mine.yaml, line 2: vae.channels[1] must be a whole number, not wide",
    "vae: {channels: []}":
        "mine.yaml, line 2 and tiny.yaml, line 4: section vae: channels, ... must all be at least 1 and at most 65536",
    "vae: {channels: [8, 18]}":
        "mine.yaml, line 2 and tiny.yaml, line 4: section vae: channels 18 cannot be divided into 4 norm_groups",
    "vae: {channels: [4611686018427387904, 8]}":
        "mine.yaml, line 2 and tiny.yaml, line 4: section vae: channels, ... must all be at least 1 and at most 65536",
    "unet: {channels: [8, 18]}":
        "mine.yaml, line 2 and tiny.yaml, line 19: section unet: channels 18 cannot be divided into 4 norm_groups",
    "unet: {num_heads: 3}":
        "tiny.yaml, line 14 and mine.yaml, line 2: section unet: channels 8 cannot be divided among 3 num_heads",
    "unet: {num_heads: [2, 2, 2]}":
        "mine.yaml, line 2 and tiny.yaml, line 14: section unet: num_heads has 3 entries for 2 channels...",
    "unet: {cross_attention: [true]}":
        "mine.yaml, line 2 and tiny.yaml, line 14: section unet: cross_attention has 1 entries for 2 channels...",
    "unet: {cross_attention_dim: wide}": "mine.yaml, line 2: unet.cross_attention_dim must be a whole number, not wide",
    "unet: {cross_attention_dim: 0}":
        "...mine.yaml, line 2 ...: section unet: ...cross_attention_dim, ...must all be at least 1 ...",
    "user_encoder: {dim: 16}":
        "mine.yaml, line 2: user_encoder.dim is 16, but it follows from unet.cross_attention_dim, which is 12...",
    "unet: {latent_channels: 8}":
        "mine.yaml, line 2: unet.latent_channels is 8, but it follows from vae.latent_channels, which is 4...",
    "data: {resolution: 17}": "mine.yaml, line 2: data.resolution 17 cannot be halved 1 times ...; use a multiple of 2",
    "data: {resolution: 4}": "mine.yaml, line 2: section data: resolution must be at least 8 and at most 8192, not 4",
    "data: {resolution: 1000000}":
        "mine.yaml, line 2: section data: resolution must be at least 8 and at most 8192, not 1000000",
    "data: {channels: 2}": "mine.yaml, line 2: data.channels must be one of 1, 3, not 2",
    "vae: {image_channels: 1}":
        "mine.yaml, line 2: vae.image_channels is 1, but it follows from data.channels, which is 3; leave it out",
    "sampling: {batch_size: 0}": "mine.yaml, line 2: section sampling: batch_size must be at least 1, not 0",
    "data: {dir: 7}": "mine.yaml, line 2: data.dir must be text, not 7; put it in quotes if it is text",
    'data: {dir: ""}':
        "mine.yaml, line 2: section data: dir is empty; give the folder that holds a folder of images per user",
    'data: {dir: "a\\0b"}':
        'mine.yaml, line 2: data.dir must be text, not the text "a\\x00b", ...a character that no file can hold...',
    "data: {recordings_per_user: 0}":
        "mine.yaml, line 2: section data: recordings_per_user must be at least 1, or null, not 0",
    "data: {validation_fraction: 1}":
        "mine.yaml, line 2: section data: validation_fraction must lie between 0 and 1, not 1.0",
    "data: {recording_pattern: '('}":
        "mine.yaml, line 2: section data: recording_pattern '(' is no regular expression: missing ), ...",
    "data: {recording_pattern: 'a{9999999999}'}":
        "mine.yaml, line 2: section data: recording_pattern 'a{9999999999}' is no regular expression: ...",
    "data: {recording_pattern: '[[a]'}":
        "mine.yaml, line 2: section data: recording_pattern '[[a]' is no regular expression: Possible nested set ...",
    "data: {horizontal_flip: true}":
        "tiny.yaml, line 11 and mine.yaml, line 2: flipped images have no cached latents...",
    "vae_loss: {kl_weight: -1}": "mine.yaml, line 2: section vae_loss: kl_weight, ... must not be negative",
    "vae_loss: {kl_weight: .nan}": "mine.yaml, line 2: vae_loss.kl_weight must be a finite number, not .nan",
    "vae_loss: {perceptual_weight: 1}":
        "mine.yaml, line 2: section vae_loss: perceptual_weight needs perceptual_weights, ...",
    "vae_loss: {adversarial_weight: 1}":
        "mine.yaml, line 2 and tiny.yaml, line 3: vae_loss.adversarial_weight needs larger images: ... 24, not 16",
    "schedule: {zero_terminal_snr: true, prediction: noise}":
        "mine.yaml, line 2: section schedule: noise prediction with zero_terminal_snr ...; predict velocity ...",
    "schedule: {beta_start: 0.5, beta_end: 0.1}":
        "mine.yaml, line 2: section schedule: betas are 0.5 and 0.1; they must be 0 < beta_start <= beta_end < 1",
    "schedule: {beta_start: 1e-300, beta_end: 1e-300}":
        "mine.yaml, line 2...: section schedule: beta_start 1e-300, ...by more than rounding",
    "schedule: {num_train_timesteps: 1000000000000}":
        "mine.yaml, line 2: section schedule: num_train_timesteps is 1000000000000; it must be from 1 to 1000000",
    "sampling: {steps: 2000}":
        "mine.yaml, line 2: sampling.steps is 2000, more than the 1000 of schedule.num_train_timesteps",
    "sampling: {steps: 1, spacing: leading}":
        "mine.yaml, line 2: sampling.steps and sampling.spacing: one step with spacing leading ...",
    "sampling: {guidance_interval: [3, 1]}":
        "mine.yaml, line 2: section sampling: guidance_interval is (3.0, 1.0); it must be 0 <= low < high",
    'latents: {vae_path: ""}':
        "mine.yaml, line 2: section latents: vae_path is empty; give the folder of a VAE, or null",
    "vae: {layers_per_block: 33}":
        "...mine.yaml, line 2...: section vae: ...layers_per_block is 33; ...at most 32 of each",
    "unet: {layers_per_block: 65536}": "...mine.yaml, line 2...: section unet: ...layers_per_block is 65536; ...",
    "seed: -1": "mine.yaml, line 2: seed must be 0 or more, not -1",
    "seed: 1\nseed: 2": 'mine.yaml, line 3: key "seed" stands twice, first at mine.yaml, line 2',
    "vae:\n  norm_groups: 4\n  norm_groups: 2":
        'mine.yaml, line 4: key "norm_groups" stands twice, first at mine.yaml, line 3',
    "vae: {channels: [8, 16]": "mine.yaml, line 3: not valid YAML: expected ',' or '}', but got '<stream end>'",
    "vae:\n\tchannels: [8, 16]": "mine.yaml, line 3: not valid YAML: found character '\\t' that cannot start any token",
    "vae: &mine {norm_groups: 4}":
        "mine.yaml, line 2: write the value out instead of an anchor (&), alias (*) or tag (!)",
    "vae: !!python/object/apply:os.system [touch ran]":
        "mine.yaml, line 2: write the value out instead of an anchor (&), alias (*) or tag (!)",
    "? [1, 2]\n: 3": "mine.yaml, line 2: a key must be a word, not a list or mapping",
    "base: tiny.yaml": 'mine.yaml, line 2: key "base" stands twice, first at mine.yaml, line 1',
}  # fmt: skip


@pytest.mark.parametrize(("text", "phrase"), CONFIGS.items(), ids=list(CONFIGS))
def test_a_bad_config_is_answered_with(refused, text, phrase):
    Path("mine.yaml").write_text(f"base: tiny.yaml\n{text}\n")
    refused("vae --config mine.yaml", phrase)


FILES = {
    "empty": (b"", "mine.yaml must be a mapping of keys to values, not empty"),
    "not text": (b"\xff\xfe\x00", "mine.yaml is not UTF-8 text (byte 0)"),
    "a list": (b"- a\n- b\n", "mine.yaml must be a mapping of keys to values, not a list of 2"),
    "base of itself": (b"base: mine.yaml\n",
        "mine.yaml, line 1: base: mine.yaml leads back to this file, so neither can start from the other"),
    "base of its base": (b"base: yours.yaml\n",
        "yours.yaml, line 1: base: mine.yaml leads back to this file, so neither can start from the other"),
    "base that is not there": (b"seed: 1\nbase: tinny.yaml\n",
        "mine.yaml, line 2: base: tinny.yaml does not exist (did you mean tiny.yaml?)"),
    "base that is a folder": (b"base: data\n", "mine.yaml, line 1: base: data cannot be read (Is a directory)"),
    "no section unet": (b"seed: 1\ndata: {resolution: 16}\n",
        'mine.yaml, line 1: the top level lacks the key "vae", a section with keys of its own'),
    "a list of a million": (b"a: [" + b"1," * 10**6 + b"]\n",
        "mine.yaml has more than 250,000 bytes; give a config's file"),
    "a list of ten thousand": (b"a: [" + b"1," * 10**4 + b"]\n",
        "mine.yaml, line 1: more than 5,000 keys and values; give a config's file"),
    "keys by the thousand": (b"".join(b"a%d: 1\n" % i for i in range(5000)),
        "mine.yaml, line 2499: more than 5,000 keys and values; give a config's file"),
    "a device": (None, "mine.yaml cannot be read (not a file, but a pipe or a device)"),
    "endless nesting": (b"a: " + b"[" * 5000, "mine.yaml, line 1: more than 20 levels of nesting"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_bad_file_of_a_config_is_answered_with(refused, name):
    content, phrase = FILES[name]
    Path("mine.yaml").write_bytes(content) if content is not None else os.mkfifo("mine.yaml")
    Path("yours.yaml").write_text("base: mine.yaml\n")
    refused("vae --config mine.yaml", phrase)


# ---- data: what is done in the folder, which has four images of each of ID1, ID2 and ID10


def truncate(path: str | Path, keep: int) -> None:
    Path(path).write_bytes(Path(path).read_bytes()[:keep])


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def bomb(path: str, side: int) -> None:
    """A PNG of a few bytes that says it has side x side pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    Path(path).write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)


def one_image_in_all() -> None:
    shutil.rmtree("data")
    picture("data/ID1/1.png")


def one_level_too_high() -> None:
    os.renames("data", "kaggle/data")
    os.rename("kaggle", "data")


DATA = {
    "no folder": (lambda: shutil.rmtree("data"),
        "data: no such folder; data.dir is what holds a folder of images per user"),
    "a file in its place": (lambda: (shutil.rmtree("data"), Path("data").write_text("")),
        "data: no such folder; data.dir is what holds a folder of images per user"),
    "an empty folder": (lambda: (shutil.rmtree("data"), Path("data").mkdir()),
        "data: there is no user in it...as in data/ID1/image.png"),
    "images without users": (lambda: (shutil.rmtree("data"), picture("data/1.png")),
        "data: there is no user in it...as in data/ID1/image.png"),
    "one image in all": (one_image_in_all, "data: every user has a single recording..."),
    "a folder around it": (one_level_too_high,
        "data: no image directly in the folder of data; ... if the users are in there, give data/data as data.dir"),
    "a user of broken images only": (lambda: [truncate(f"data/ID2/{i}.png", 9) for i in range(4)],
        "data: 4 of 12 images cannot be read...data/ID2/0.png: ...data/ID2/2.png: ... and 1 more"),
    "a user whose images are of no known format": (lambda: (Path("data/ID3").mkdir(), Path("data/ID3/1.heic").touch()),
        "data: no image directly in the folder of ID3; put images there (.apng ...), remove it, or give a folder ..."),
    "a user with images in sub-folders only": (lambda: picture("data/ID3/walk/1.png"),
        "data: no image directly in the folder of ID3; ... if the users are in there, give data/ID3 as data.dir"),
    "users whose names differ in case only": (lambda: picture("data/Id1/1.png"),
        "data: users 'ID1' and 'Id1' differ in case only, or in how accents are stored; rename one"),
    "users whose names differ in form only": (lambda: (picture("data/\u00e9/1.png"), picture("data/e\u0301/1.png")),
        "data: users 'é' and 'é' differ in case only, or in how accents are stored; rename one"),
    "a user whose name has a line break": (lambda: picture("data/a\nb/1.png"),
        "data: rename 'a\\nb'; such a name cannot be written into a text file"),
    "a user who is a link to nowhere": (lambda: Path("data/ID3").symlink_to("nowhere"),
        "data/ID3: is a link to nowhere; repair or remove it"),
    "a user who is a link to itself": (lambda: Path("data/ID3").symlink_to("ID3"),
        "data/ID3: is a link to nowhere; repair or remove it"),
    "a user who is a link to all": (lambda: Path("data/ID3").symlink_to("."),
        "data: no image directly in the folder of ID3; ... if the users are in there, give data/ID3 as data.dir"),
}  # fmt: skip


UNREADABLE = {
    "a truncated PNG": (lambda: truncate("data/ID2/1.png", 300),
        "data: 2 of 12 images cannot be read...data/ID2/1.png: cannot be read (image file is truncated..."),
    "a PNG of its header only": (lambda: truncate("data/ID2/1.png", 20),
        "data: 2 of 12 images cannot be read...data/ID2/1.png: cannot be read (..."),
    "zero bytes": (lambda: truncate("data/ID2/1.png", 0),
        "data: 2 of 12 images cannot be read...data/ID2/1.png: not an image of a known format ..."),
    "text named .png": (lambda: Path("data/ID2/1.png").write_text("hello"),
        "data: 2 of 12 images cannot be read...data/ID2/1.png: not an image of a known format ..."),
    "a directory named .png": (lambda: Path("data/ID2/x.png").mkdir(),
        "data: 2 of 13 images cannot be read...data/ID2/x.png: cannot be read (not a file)..."),
    "a link to nowhere named .png": (lambda: Path("data/ID2/x.png").symlink_to("nowhere"),
        "data: 2 of 13 images cannot be read...data/ID2/x.png: cannot be read (not a file)..."),
    "a decompression bomb": (lambda: bomb("data/ID2/1.png", 30_000),
        "data: 2 of 12 images cannot be read...data/ID2/1.png: cannot be read (Image size (900000000 pixels) ..."),
    "a small decompression bomb": (lambda: bomb("data/ID2/1.png", 17_000),
        "data: 2 of 12 images cannot be read...data/ID2/1.png: cannot be read (Image size (289000000 pixels) ..."),
    "floating-point pixels": (lambda: Image.new("F", (9, 9)).save("data/ID2/x.tif"),
        "data: 2 of 13 images cannot be read...data/ID2/x.tif: cannot be read (floating-point pixels ..."),
}  # fmt: skip


@pytest.mark.parametrize("name", UNREADABLE)
def test_a_second_unreadable_image_is_answered_with(refused, name):
    spoil, phrase = UNREADABLE[name]
    truncate("data/ID10/3.png", 0)
    spoil()
    refused(VAE, phrase)


@pytest.mark.parametrize("name", DATA)
def test_bad_data_is_answered_with(refused, name):
    spoil, phrase = DATA[name]
    spoil()
    refused(VAE, phrase)


# ---- saved models and checkpoints: what is done to them, and the command that then reads them


class Code:
    """Unpickled, it would write a file."""

    def __reduce__(self):
        return os.system, ("touch ran",)


def edit(path: str | Path, **changes) -> None:
    """Change keys of a JSON file; `...` removes one."""
    values = json.loads(Path(path).read_text()) | changes
    Path(path).write_text(json.dumps({key: value for key, value in values.items() if value is not ...}))


def scale(folder: str) -> float:
    return json.loads(Path(folder, "config.json").read_text())["scaling_factor"]


def weights(folder: str, change: Callable[[dict], object]) -> None:
    """Change the weights of a saved model, in a .bin."""
    state = model_folder.load(Path(folder)).state_dict()
    change(state)
    (Path(folder) / "diffusion_pytorch_model.safetensors").unlink(missing_ok=True)
    torch.save(state, Path(folder) / "diffusion_pytorch_model.bin")


def constant(state: dict) -> None:
    """Weights of a VAE that makes the same of every image."""
    for tensor in state.values():
        tensor.zero_()
    state["quant_conv.bias"][4:] = -30


def latest(run: str) -> Path:
    """The newest checkpoint of a run."""
    return max(Path(run, "checkpoints").iterdir())


def checkpoint(run: str, change: Callable[[dict], object]) -> None:
    """Change what a checkpoint holds; its checksum is made to fit."""
    path = latest(run) / "state.pt"
    saved = torch.load(path, weights_only=True)
    torch.save(change(saved) or saved, path)
    edit(latest(run) / "checksum.json", **{path.name: hashlib.sha256(path.read_bytes()).hexdigest()})


def swap(a: str, b: str) -> None:
    shutil.rmtree(a)
    shutil.copytree(b, a)


BIN = "diffusion_pytorch_model.bin"
TENSORS = "diffusion_pytorch_model.safetensors"
V, L = "v/final_model", "l/final_model"
MODELS = {
    "an output that is a circle of links": (lambda: Path("loop").symlink_to("loop"), VAE.replace("new", "loop"),
        "loop: is not empty and not the folder of a vae run; use another output_dir"),
    "an output within a circle of links": (lambda: Path("loop").symlink_to("loop"), VAE.replace("new", "loop/x"),
        "loop/x: cannot be written (...)"),
    "images into a circle of links": (lambda: Path("loop").symlink_to("loop"), SAMPLE.replace("new", "loop"),
        "loop: is not an empty folder, nor one of generated images; give another --output_dir"),
    "images from a circle of links": (lambda: Path("loop").symlink_to("loop"), EVALUATE.replace("l/generated", "loop"),
        "loop: holds no image of a user of l/final_model; ..."),
    "data in a circle of links": (lambda: Path("loop").symlink_to("loop"), VAE.replace("data --o", "loop --o"),
        "loop: no such folder; data.dir is what holds a folder of images per user"),
    "a VAE of constant latents": (lambda: weights(V, constant), LDM,
        "the VAE turns all images into the same latents, and so has learned nothing; train another"),
    "a schedule without noise": (
        lambda: edit(f"{L}/scheduler/scheduler_config.json", beta_start=1e-300, beta_end=1e-300), SAMPLE,
        "l/final_model/scheduler/scheduler_config.json: beta_start 1e-300, ...by more than rounding"),
    "no VAE": (lambda: shutil.rmtree(V), LDM, "v/final_model: there is no VAE here...give its folder as --vae_path"),
    "the run's folder for its model's": (lambda: None, LDM.replace(V, "v"),
        "v/config.json: there is no such file (did you mean v/final_model?)"),
    "a file for a folder": (lambda: None, LDM.replace(V, f"{V}/config.json"),
        "v/final_model/config.json: there is no VAE here...give its folder as --vae_path"),
    "a UNet for a VAE": (lambda: None, LDM.replace(V, f"{L}/unet"),
        "l/final_model/unet/config.json: holds a model UNet2DConditionModel where AutoencoderKL is needed"),
    "no config.json": (lambda: os.remove(f"{V}/config.json"), LDM, "v/final_model/config.json: there is no such file"),
    "half a config.json": (lambda: truncate(f"{V}/config.json", 50), LDM,
        "v/final_model/config.json: cannot be read as JSON (..."),
    "another class": (lambda: edit(f"{V}/config.json", _class_name="VQModel"), LDM,
        "v/final_model/config.json: _class_name is 'VQModel'..."),
    "an option that we lack": (lambda: edit(f"{V}/config.json", act_fn="gelu"), LDM,
        "v/final_model/config.json: act_fn='gelu' is not implemented here (only 'silu' is)"),
    "a scale that is no number": (lambda: edit(f"{V}/config.json", scaling_factor=float("nan")), LDM,
        "v/final_model/config.json: scaling_factor=nan is not implemented here"),
    "no scale": (lambda: edit(f"{V}/config.json", scaling_factor=None), LDM,
        "v/final_model: the VAE has no scaling_factor in its config.json; finish its training first"),
    "another width": (lambda: edit(f"{V}/config.json", block_out_channels=[8, 32]), LDM,
        "v/final_model/...safetensors: encoder....conv1.weight has shape (16, 8, 3, 3), but ...means (32, 8, 3, 3)"),
    "an endless width": (lambda: edit(f"{V}/config.json", block_out_channels=[8, 2**61]), LDM,
        "v/final_model/config.json: channels, ... must all be at least 1 and at most 65536"),
    "another model's config.json": (lambda: shutil.copy(f"{L}/unet/config.json", V), "vae " + LDM[4:],
        "v/final_model/config.json: holds a model UNet2DConditionModel where AutoencoderKL is needed"),
    "truncated weights": (lambda: truncate(f"{V}/{TENSORS}", 5000), LDM,
        "v/final_model/diffusion_pytorch_model.safetensors: cannot be read (..."),
    "empty weights": (lambda: truncate(f"{V}/{TENSORS}", 0), LDM,
        "v/final_model/diffusion_pytorch_model.safetensors: is empty; save or copy it again"),
    "no weights": (lambda: os.remove(f"{V}/{TENSORS}"), LDM,
        "v/final_model: holds neither diffusion_pytorch_model.safetensors nor diffusion_pytorch_model.bin"),
    "a weight missing": (lambda: weights(V, lambda w: w.pop("encoder.conv_in.bias")), LDM,
        "v/final_model/diffusion_pytorch_model.bin: lacks encoder.conv_in.bias (1 such)..."),
    "a weight too many": (lambda: weights(V, lambda w: w.update(extra=torch.ones(1))), LDM,
        "v/final_model/diffusion_pytorch_model.bin: has an unexpected extra (1 such)..."),
    "a weight that is a number": (lambda: weights(V, lambda w: w.update({"encoder.conv_in.bias": 3})), LDM,
        "v/final_model/diffusion_pytorch_model.bin: 'encoder.conv_in.bias' is no weight, but int"),
    "a weight of integers": (lambda: weights(V, lambda w: w.update({"encoder.conv_in.bias": torch.ones(8).int()})), LDM,
        "v/final_model/diffusion_pytorch_model.bin: encoder.conv_in.bias is not a plain tensor of real numbers"),
    "a weight that is NaN": (lambda: weights(V, lambda w: w["encoder.conv_in.bias"].fill_(torch.nan)), LDM,
        "v/final_model/diffusion_pytorch_model.bin: encoder.conv_in.bias holds values that are no finite numbers..."),
    "weights with code": (lambda: weights(V, lambda w: w.update(code=Code())), LDM,
        "v/final_model/diffusion_pytorch_model.bin: refused: damaged, or with Python objects ..."),
    "weights that are text": (lambda: (os.remove(f"{V}/{TENSORS}"), Path(f"{V}/{BIN}").write_text("hello")), LDM,
        "v/final_model/diffusion_pytorch_model.bin: is text, which begins with 'hello'; save or copy it again"),
    "the VAE of 3 levels": (lambda: None, LDM + " --set vae.channels=[8,8,8] --resolution 18",
        "--resolution 18: data.resolution 18 cannot be halved 2 times ...; use a multiple of 4"),
    "no UNet": (lambda: shutil.rmtree(f"{L}/unet"), SAMPLE, "l/final_model/unet/config.json: there is no such file"),
    "no users": (lambda: os.remove(f"{L}/users.json"), SAMPLE,
        f"l/final_model: {NO_LDM.replace(';', ' (did you mean l/checkpoints/step_...);')}"),
    "an empty list of users": (lambda: edit(f"{L}/users.json", users=[]), SAMPLE,
        "l/final_model/users.json: names no user"),
    "a user that leaves the folder": (lambda: edit(f"{L}/users.json", users=["ID1", "ID2", "../x"]), SAMPLE,
        "l/final_model/users.json: the user '../x' is not the name of a folder"),
    "a user whose name is a NUL": (lambda: edit(f"{L}/users.json", users=["ID1", "ID2", "\0"]), SAMPLE,
        "l/final_model/users.json: the user '\\x00' is not the name of a folder"),
    "65,536 users": (lambda: edit(f"{L}/users.json", users=[f"ID{i}" for i in range(2**16)]), SAMPLE,
        "l/final_model: the condition_encoder's num_users is 3, ...in users.json is 65536; they do not go together"),
    "a user twice": (lambda: edit(f"{L}/users.json", users=["ID1", "ID2", "ID1"]), SAMPLE,
        "l/final_model/users.json: the user 'ID1' stands there twice"),
    "a user too many": (lambda: edit(f"{L}/users.json", users=["a", "b", "c", "d"]), SAMPLE,
        "l/final_model: the condition_encoder's num_users is 3, ...in users.json is 4; they do not go together"),
    "a UNet of other latents": (lambda: edit(f"{L}/unet/config.json", sample_size=16), SAMPLE,
        "l/final_model: the unet's sample_size is 16, ...is 8; they do not go together"),
    "a UNet of latents unknown": (lambda: edit(f"{L}/unet/config.json", sample_size=None), SAMPLE,
        "l/final_model: the unet's sample_size is None, ...is 8; they do not go together"),
    "a VAE of unknown scale": (lambda: edit(f"{L}/vae/config.json", scaling_factor=None), SAMPLE,
        "l/final_model/vae/config.json: has no scaling_factor, so the VAE's training has not ended"),
    "a VAE in the place of the UNet": (lambda: swap(f"{L}/unet", f"{L}/vae"), SAMPLE,
        "l/final_model/unet/config.json: holds a model AutoencoderKL where UNet2DConditionModel is needed"),
    "fewer timesteps than steps": (lambda: edit(f"{L}/scheduler/scheduler_config.json", num_train_timesteps=3), SAMPLE,
        "l/final_model/scheduler: sampling.steps is 4, but the model was trained with 3 timesteps; take fewer --steps"),
    "no config.yaml": (lambda: os.remove(f"{L}/config.yaml"), SAMPLE, "l/final_model/config.yaml does not exist"),
    "the folder around its run": (lambda: os.rename("l", "ldm"), "sample --model .",
        f".: {NO_LDM.replace(';', ' (did you mean ldm/final_model?);')}"),
    "images of other weights": (lambda: edit("l/generated/settings.json", weights="12ab"), EVALUATE,
        "l/generated: holds images that another model made than l/final_model..."),
    "a split that is none": (lambda: Path(f"{L}/split.json").write_text("{}"), EVALUATE,
        "l/final_model/split.json: is not as it was written; delete it to have the split made again"),
    "a split of an earlier version": (lambda: edit(f"{L}/split.json", held_out=...), EVALUATE,
        "l/final_model/split.json: was made by an earlier version, ...; train VAE and LDM again, ..."),
    "a generated image truncated": (lambda: truncate("l/generated/ID1/generated_000.png", 100), EVALUATE,
        "l/generated: no image of ID1 can be read; repair or remove them: "
        "l/generated/ID1/generated_000.png: cannot be read (image file is truncated..."),
    "another VAE for the same run": (lambda: weights(V, lambda w: w["encoder.conv_in.bias"].add_(1)), RESUME_LDM,
        "l/checkpoints/step_00000002_best: the VAE is not what this run began with..."),
    "another scale for the same run": (lambda: edit(f"{V}/config.json", scaling_factor=1.01 * scale(V)), RESUME_LDM,
        "l/checkpoints/step_00000002_best: the VAE is not what this run began with..."),
    "other images for the same run": (lambda: picture("data/ID1/0.png", 99), RESUME_VAE,
        "v/checkpoints/step_00000002_best: the data is not what this run began with..."),
    "fewer epochs than were trained": (lambda: checkpoint("v", lambda s: s.update(step=9)), RESUME_VAE,
        "v/checkpoints/step_00000002_best: the run has already taken 9 steps, more than the 2 asked for..."),
    "an image more for the same run": (lambda: picture("data/ID1/9.png"), RESUME_VAE,
        "v/split.json: does not fit the images in data: 1 were added, ...the first is ID1/9.png..."),
    "a truncated checkpoint": (lambda: truncate(latest("v") / "state.pt", 5000), RESUME_VAE,
        "v/checkpoints: no checkpoint in it is whole; remove it to start from the beginning"),
    "a checkpoint without checksum": (lambda: os.remove(latest("v") / "checksum.json"), RESUME_VAE,
        "v/checkpoints: no checkpoint in it is whole; remove it to start from the beginning"),
    "a checkpoint with code": (lambda: checkpoint("v", lambda s: s["state"].update(code=Code())), RESUME_VAE,
        "v/checkpoints: no checkpoint in it is whole; remove it to start from the beginning"),
    "a checkpoint of another width": (
        lambda: checkpoint("v", lambda s: s["state"]["vae"].update({"encoder.conv_in.bias": torch.ones(9)})),
        RESUME_VAE,
        "v/checkpoints/step_00000002_best: the vae in it is of another model; use another output_dir"),
    "a checkpoint of the other stage": (lambda: swap("v/checkpoints", "l/checkpoints"), RESUME_VAE,
        "v/checkpoints/step_00000002_best: holds inputs, model, ..., this run inputs, vae, ..."),
    "a checkpoint that is not ours": (lambda: checkpoint("v", lambda s: {"epoch": 3}), RESUME_VAE,
        "v/checkpoints: no checkpoint in it is whole; remove it to start from the beginning"),
    "a checkpoint of a list": (lambda: checkpoint("v", lambda s: [1, 2]), RESUME_VAE,
        "v/checkpoints: no checkpoint in it is whole; remove it to start from the beginning"),
    "a checkpoint of an odd step": (lambda: checkpoint("v", lambda s: s.update(step="three")), RESUME_VAE,
        "v/checkpoints: no checkpoint in it is whole; remove it to start from the beginning"),
}  # fmt: skip


@pytest.mark.parametrize("name", MODELS)
def test_a_bad_model_or_checkpoint_is_answered_with(refused, name):
    spoil, line, phrase = MODELS[name]
    spoil()
    refused(line, phrase)
    assert not Path("ran").exists()


# ---- commands

LINES = {
    f"{VAE} --batchsize 2": "--batchsize: is not a flag (did you mean --batch_size?); --help lists them",
    f"{VAE} --batch 2": "--batch: is not a flag (did you mean --batch_size?); --help lists them",
    f"{VAE} more": "more: is not a flag; --help lists them",
    f"{VAE} --batch_size": "argument --batch_size/--batch-size: expected one argument",
    f"{VAE} --batch_size two": "--batch_size two: vae_training.batch_size must be a whole number, not two",
    f"{VAE} --learning_rate 0":
        "--learning_rate 0: section vae_training.optimizer: learning_rate and max_grad_norm must be positive",
    f"{VAE} --num_epochs -1": "--num_epochs -1: section vae_training: num_epochs must be at least 1, not -1",
    f"{VAE} --set": "argument --set: expected one argument",
    f"{VAE} --set seed": "--set seed: must be SECTION.KEY=VALUE",
    f"{VAE} --set =1": "--set =1: must be SECTION.KEY=VALUE",
    f"{VAE} --set sed=1": '--set sed=1: unknown key "sed" in the top level (did you mean seed?)',
    f"{VAE} --set vae.chanels=[8]":
        '--set vae.chanels=[8]: unknown key "chanels" in section vae (did you mean channels?)',
    f"{VAE} --set vae=1": "--set vae=1: vae must be a section with keys of its own, not 1",
    f"{VAE} --set seed.x=1": "--set seed.x=1: seed must be a whole number, not a section",
    f"{VAE} --set base=tiny.yaml":
        '--set base=tiny.yaml: unknown key "base" in the top level; its keys are seed, data, vae, ...',
    f"{VAE} --config tinny.yaml": "tinny.yaml does not exist (did you mean tiny.yaml?)",
    f"{VAE} --config data": "data cannot be read (Is a directory)",
    f"{VAE} --data_dir nowhere": "nowhere: no such folder; data.dir is what holds a folder of images per user",
    f"{VAE} --data_dir ''": "--data_dir: needs a value, not an empty one",
    f"{VAE} --vae_path ''": "--vae_path: needs a value, not an empty one",
    f"{VAE} --vae_path nowhere": "nowhere/config.json: there is no such file",
    f"{VAE} --vae_path v/final_model --set data.channels=1 --set vae.image_channels=1":
        "v/final_model: the VAE has 3 channels where data.channels is 1",
    f"{VAE} --output_dir data": "data: lies within data.dir data, where it would count as a user...",
    f"{VAE} --output_dir data/out": "data/out: lies within data.dir data, where it would count as a user...",
    f"{VAE} --output_dir .": ".: is not empty and not the folder of a vae run; use another output_dir",
    f"{VAE} --output_dir ''": "--output_dir: needs a value, not an empty one",
    f"{VAE} --output_dir tiny.yaml": "tiny.yaml: is not empty and not the folder of a vae run; use another output_dir",
    f"{VAE} --output_dir tiny.yaml/new": "tiny.yaml/new: cannot be written (Not a directory)",
    f"{VAE} --output_dir l": "l: holds a run of python -m train.ldm; use another output_dir",
    f"{VAE} --output_dir v --set vae.norm_groups=2":
        "v: holds a run of another config (vae.norm_groups was 4, is 2)...",
    f"{VAE} --set data.recording_pattern=^rec":
        "ID1/0.png: data.recording_pattern '^rec' finds no recording in this file's name",
    f"{VAE} --set data.recording_pattern=png": "data: every user has a single recording...",
    f"{VAE} --set data.recordings_per_user=1":
        "data: no user has a second image in the recordings that train...; add images, or raise data.recordings_per...",
    f"{VAE} --set vae_loss.perceptual_weight=1 --set vae_loss.perceptual_weights=vgg.pt":
        "vgg.pt: there is no such file",
    f"{LDM} --cross_attention_dim 0":
        "...--cross_attention_dim 0 ...: section unet: ...cross_attention_dim, ...must all be at least 1 ...",
    f"{LDM} --cross_attention_dim x": "--cross_attention_dim x: unet.cross_attention_dim must be a whole number, not x",
    f"{LDM} --resolution 17": "--resolution 17: data.resolution 17 cannot be halved 1 times ...; use a multiple of 2",
    f"{LDM} --resolution 32 --output_dir l": "l: holds a run of another config (data.resolution was 16, is 32)...",
    f"{LDM} --set user_encoder.num_users=5":
        "data: holds 3 users, but user_encoder.num_users is 5; leave it out, or set it so",
    f"{LDM} --set unet.latent_channels=8 --set vae.latent_channels=8":
        "v/final_model: the VAE has 4 channels where unet.latent_channels is 8",
    f"{LDM} --output_dir v": "v: holds a run of python -m train.vae; use another output_dir",
    "sample": "the following arguments are required: --model",
    "sample --model nowhere": f"nowhere: {NO_LDM}",
    "sample --model tiny.yaml": f"tiny.yaml: {NO_LDM}",
    "sample --model v": f"v: {NO_LDM}",
    "sample --model v/final_model": f"v/final_model: {NO_LDM}",
    "sample --model l": f"l: {NO_LDM.replace(';', ' (did you mean l/final_model?);')}",
    f"{SAMPLE} --users": "argument --users: expected at least one argument",
    f"{SAMPLE} --users ''": "--users '': not a user of this model; it knows ID1, ID2, ID10",
    f"{SAMPLE} --users ID11": "--users 'ID11': not a user of this model (did you mean ID1?); it knows ID1, ID2, ID10",
    f"{SAMPLE} --users id1": "--users 'id1': not a user of this model (did you mean ID1?); it knows ID1, ID2, ID10",
    f"{SAMPLE} --users 0": "--users '0': not a user of this model; it knows ID1, ID2, ID10",
    f"{SAMPLE} --batch_size 0": "--batch_size 0: section sampling: batch_size must be at least 1, not 0",
    f"{SAMPLE} --steps 0": "--steps 0: section sampling: steps is 0; it must be at least 1",
    f"{SAMPLE} --steps 2000": "--steps 2000 and l/final_model/config.yaml, line ...",
    f"{SAMPLE} --steps ''": "--steps: needs a value, not an empty one",
    f"{SAMPLE} --guidance -1": "--guidance -1: section sampling: guidance is -1.0; it must be from 0 to 1000",
    f"{SAMPLE} --guidance 1e9": "--guidance 1e9: section sampling: guidance is 1000000000.0; it must be from 0 to 1000",
    f"{SAMPLE} --guidance nan": "--guidance nan: sampling.guidance must be a finite number, not nan",
    f"{SAMPLE} --guidance much": "--guidance much: sampling.guidance must be a finite number, not much",
    f"{SAMPLE} --sampler dpmm":
        "--sampler dpmm: sampling.sampler must be one of ddpm, ddim, dpm, heun, euler, not dpmm (did you mean dpm?)",
    f"{SAMPLE} --steps 1 --set sampling.spacing=linspace":
        "--steps 1 and --set sampling.spacing=linspace: sampling.steps and sampling.spacing: one step ...",
    f"{SAMPLE} --num_images 0": "--num_images 0: must be at least 1",
    f"{SAMPLE} --num_images 100000000": "--num_images 100000000: must be at most 100000; take several seeds for more",
    f"{SAMPLE} --num_images 5 --per_training_image 1":
        "argument --per_training_image/--per-training-image: not allowed with argument --num_images/--num-images",
    f"{SAMPLE} --per_training_image 0": "--per_training_image 0: must be at least 1",
    f"{SAMPLE} --per_training_image 33334":
        "--per_training_image 33334: must be at most 33333; take several seeds for more",
    f"{SAMPLE} --num_images few": "argument --num_images/--num-images: invalid int value: 'few'",
    f"{SAMPLE} --seed -1": "--seed -1: must be at least 0",
    f"{SAMPLE} --resolution 32": "l/final_model: the unet's sample_size is 8, ...is 16; they do not go together",
    f"{SAMPLE} --output_dir data/new": "data/new: lies within data.dir data, where it would count as a user; ...",
    f"{SAMPLE} --output_dir l": "l: is not an empty folder, nor one of generated images; give another --output_dir",
    f"{SAMPLE} --output_dir tiny.yaml/new": "tiny.yaml/new/settings.json: cannot be written (Not a directory)",
    f"{SAMPLE} --output_dir l/generated --seed 5": "l/generated: holds images of other seed; give another --output_dir",
    "evaluate --model nowhere": f"nowhere: {NO_LDM}",
    "evaluate --model .": f".: {NO_LDM}",
    "evaluate --model l/final_model": "l/generated/dpm4_guidance1.5_seed0_...",
    "evaluate --model l/final_model --images nowhere":
        "nowhere: holds no image of a user of l/final_model; make some with python -m train.sample --model ...",
    "evaluate --model l/final_model --images data":
        "data: holds the real images; give the folder of generated ones as --images",
    f"{EVALUATE} --seed -1": "--seed -1: must be at least 0",
    f"{EVALUATE} --test_dir nowhere": "--test_dir nowhere: no such folder; ...",
    f"{EVALUATE} --data_dir nowhere": "nowhere: no such folder; data.dir is what holds a folder of images per user",
    "augment --model .": f".: {NO_LDM}",
    f"{AUGMENT} --per_user 0": "--per_user 0: must be at least 1",
    f"{AUGMENT} --per_user few": "argument --per_user/--per-user: invalid int value: 'few'",
    f"{AUGMENT} --seed 5": "l/generated: holds images of other seed; give another as --images",
    f"{AUGMENT} --output_dir l": "l: and the folder of the generated images by themselves, l/generated, lie in ...",
    f"{AUGMENT} --output_dir v": "v: is not an empty folder, nor an augmented data set; give another --output_dir",
    f"{AUGMENT} --output_dir data/new": "data/new: lies within data.dir data, where it would count as a user; ...",
    f"{AUGMENT} --output_dir tiny.yaml/new": "tiny.yaml/new/augmented.json: cannot be written (Not a directory)",
    f"{AUGMENT} --data_dir l": "l: ...",
    "memcheck --config tiny.yaml --stage train": "argument --stage: invalid choice: 'train' (choose from ...",
    "memcheck --config tiny.yaml --gpu T44": "--gpu T44: not a known card (did you mean T4?): T4, P100, ...",
    "memcheck --config tiny.yaml --users 0": "--users 0: must be at least 1 and at most 65536",
    "memcheck --config tiny.yaml --pictures tiny.yaml/new": "tiny.yaml/new: Not a directory",
    "simulate": "the following arguments are required: --output_dir/--output-dir",
    "simulate --output_dir data": "data: is not an empty folder; delete it or name another --output_dir",
    "simulate --output_dir tiny.yaml/new --users 1": "tiny.yaml/new: cannot be written (Not a directory)",
    "simulate --output_dir new --users 0": "--users 0: must be at least 1",
    "simulate --output_dir new --condition drunk": "argument --condition: invalid choice: 'drunk' ...",
    "simulate --output_dir new --seed -1": "--seed -1: must be at least 0",
    "simulate --output_dir new --resolution 100000":
        "--resolution 100000: must be at most 2253, a picture's radar samples",
    "simulate --output_dir new --resolution x": "argument --resolution: invalid int value: 'x'",
}  # fmt: skip


@pytest.mark.parametrize(("line", "phrase"), LINES.items(), ids=list(LINES))
def test_a_bad_command_is_answered_with(refused, line, phrase):
    refused(line, phrase)


@pytest.mark.parametrize(
    "line", [f"{VAE} --set vae.chanels=[8]", f"{SAMPLE} --users ID11", "simulate --output_dir data"]
)
def test_a_process_of_its_own_says_the_same(world, line):
    command, *arguments = shlex.split(line)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", f"train.{command}", *arguments],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert says(done.stderr, f"error: {LINES[line]}\n")


def test_python_without_docstrings_or_letters_says_the_same(world):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONOPTIMIZE": "2", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, "-m", "train.sample", *shlex.split(SAMPLE)[1:], "--users", "José"],
        env=environment, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(rb"error: --users 'Jos\xe9': not a user of this model; it knows ID1")


@pytest.mark.parametrize("more", ["--seed {}", "--users {}", "--set seed={}", "--{}", "--output_dir {}", "--steps {}"])
def test_no_argument_makes_a_long_sentence(world, monkeypatch, capsys, more):
    status, said = call(f"sample --model l/final_model --num_images 1 {more.format('9' * 30_000)}", monkeypatch, capsys)
    assert (status, said.count("\n"), said[:7]) == (2, 0, "error: ")
    assert len(said) < 2100


def test_debug_shows_where_a_sentence_comes_from(world, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sample", *shlex.split(SAMPLE)[1:], "--users", "ID11", "--debug"])
    with pytest.raises(UserError, match="not a user of this model"):
        cli.run(sample.main)


# ---- what looks odd and is right

def test_a_check_refuses_an_output_dir_within_the_data(world, capsys):
    arguments = "--config tiny.yaml --data_dir data --vae_path v/final_model --output_dir data/new"
    assert check.main(shlex.split(arguments)) == 1
    assert "FAIL  disk: data/new: lies within data.dir data, where it would count as a user" in capsys.readouterr().out


NAMES = ("a b", "a..b", "ID 1.2", "-x", "张伟", "walker 🚶‍♀️", "Žofie", "it's \"me\"", "null", "007")


@pytest.mark.usefixtures("short_judgement")
def test_users_of_any_legal_name_go_through_every_command(tmp_path, monkeypatch, capsys):
    """From the data to the names of the generated files."""
    shutil.copy(Path(__file__).parents[1] / "tiny.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    for user, name in enumerate(NAMES):
        for number in range(3):
            picture(f"my data/{name}/bild {number} 图.png", 3 * user + number)
    data = "--config tiny.yaml --data_dir 'my data' --set vae_training.num_epochs=1 --num_epochs 1"
    for line in (
        f"vae {data} --output_dir '模型 v'", f"check {data} --vae_path '模型 v/final_model'",
        f"ldm {data} --vae_path '模型 v/final_model' --output_dir 'l 🚶'",
        "sample --model 'l 🚶/final_model' --num_images 1", "evaluate --model 'l 🚶/final_model'",
    ):  # fmt: skip
        status, said = call(line, monkeypatch, capsys)
        assert (status or 0, said) == (0, "")
    made = {path.parent.name for path in Path("l 🚶/generated").glob("*/*/generated_000.png")}
    assert made == set(NAMES)
    status, said = call("sample --model 'l 🚶/final_model' --num_images 1 --users=-x", monkeypatch, capsys)
    assert (status or 0, said) == (0, "")


def test_litter_and_odd_images_do_not_disturb(world, monkeypatch, capsys):
    """Hidden folders (Kaggle's, for one), other programs' files; animations, turned and damaged photographs."""
    picture("data/.ipynb_checkpoints/1.png")
    picture("data/ID1/.ipynb_checkpoints/1.png")
    for path in ("Thumbs.db", ".DS_Store", "desktop.ini", "ID1/Thumbs.db", "ID1/.DS_Store", "ID1/notes.txt"):
        Path("data", path).write_bytes(b"\x00\x01litter")
    Path("data/ID2/loop").symlink_to("loop")
    frames = [Image.new("P", (20, 20), shade) for shade in range(3)]
    for name in ("a.gif", "b.tiff"):
        frames[0].save(f"data/ID2/{name}", save_all=True, append_images=frames[1:])
    exif = Image.Exif()
    exif[0x0112] = 6
    picture("data/ID2/c.jpg", 5, exif=exif)
    picture("data/ID2/d.jpg", 5, exif=exif.tobytes()[:-3])  # cut short
    Path("data/notes").mkdir()
    others = "data: not used: 2 files of other formats (1 .txt, 1 without a suffix: ID1/notes.txt, ID2/loop)"
    for line in (VAE, LDM.replace("ldm", "check", 1).replace("new", "newer")):
        status, said = call(line, monkeypatch, capsys)
        assert (status or 0) == 0
        assert said.splitlines()[0] == f"{others}; 1 folder without images (notes)"
    listed = json.loads(Path("new/split.json").read_text())
    assert len(listed["train"] + listed["validation"] + listed["held_out"]) == 16


def test_a_user_added_later_or_other_images_need_no_new_vae(world, monkeypatch, capsys):
    """Every file that the VAE knew keeps its side; `check` says the same before."""
    known = json.loads(Path("v/split.json").read_text())
    for number in range(4):
        picture(f"data/ID3/{number}.png", 50 + number)
    picture("data/ID1/new.png", 60)
    os.remove("data/ID2/3.png")
    for line in (LDM.replace("ldm", "check", 1), LDM):
        status, said = call(f"{line} --num_epochs 1", monkeypatch, capsys)
        assert (status or 0, said) == (
            0, "v/final_model/split.json: is of other images; of the 16 in data 11 keep their side and 5 are split by "
            "the same rule (1 of its own are gone)",
        )  # fmt: skip
    found = json.loads(Path("new/split.json").read_text())
    for side in ("train", "validation", "held_out"):
        assert set(found[side]) >= set(known[side]) - {"data/ID2/3.png", "ID2/3.png"}
        assert any(path.startswith("ID3/") for path in found[side])


# ---- fuzz: bounded and seeded; whatever comes in, success or one sentence

ODD = (
    "", "null", "true", "-1", "0", "1", "2", "7", "1.5", "1e400", "-1e-400", ".nan", ".inf", "9" * 18, "9" * 30, "x",
    "[]", "[0]", "[8, 16]", "[[8]]", "{}", "{a: 1}", "'", "[", "&a", "*a", "!!str 1", "\\", "a\nb", "\x85", "é🚶", "~",
    "no",
)  # fmt: skip


def sentence_of(call: Callable[[], object]) -> str | None:
    """None where it succeeds, else what the UserError says. Any other exception, or warning, fails the test."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            call()
    except UserError as error:
        return str(error)
    return None


def mutated(content: bytes, rng: random.Random, words: tuple[bytes, ...]) -> bytes:
    """A few cuts, copies, swaps of bytes, and words put in."""
    content = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        start, length = rng.randrange(len(content) + 1), rng.choice((1, 1, 2, 8, 40))
        piece = content[start : start + length]
        content[start : start + rng.choice((0, length))] = rng.choice(
            (b"", bytes(piece * 2), bytes(reversed(piece)), rng.randbytes(length), rng.choice(words))
        )
    return bytes(content)


@pytest.mark.parametrize(
    ("sentence", "phrase", "same"),
    [("a: is b", "a: is b", True), ("a: is b", "a: ...b", True), ("a: is b", "a: ...", True),
     ("a: is b", "a: i", False), ("a: is b", "...is", False), ("a: is\nb", "a: ...b", False), ("a1", "a.", False)],
)  # fmt: skip
def test_a_phrase_is_the_whole_sentence_but_for_dots(sentence, phrase, same):
    assert says(sentence, phrase) == same


def test_a_fuzzed_config_is_read_or_refused(tmp_path):
    rng, path = random.Random(0), tmp_path / "fuzzed.yaml"
    text = (Path(__file__).parents[1] / "tiny.yaml").read_bytes()
    words = (*(word.encode() for word in ODD), b"\n", b"  ", b": ", b"base: fuzzed.yaml\n", b"\t", b"\xff", b"- ", b"#")
    said = []
    for _ in range(250):
        path.write_bytes(mutated(text, rng, words))
        said.append(sentence_of(lambda: Config.read(path)))
    assert None in said
    assert len(set(said)) > 100  # it does not fail in one place only


def test_a_fuzzed_set_or_flag_is_taken_or_refused(tmp_path, monkeypatch, capsys):
    """The data folder is not there, so the sentence always comes."""
    shutil.copy(Path(__file__).parents[1] / "tiny.yaml", tmp_path)
    monkeypatch.chdir(tmp_path)
    rng = random.Random(0)
    keys = sorted(
        f"{section}.{key}" for section, values in asdict(tiny()).items() if isinstance(values, dict) for key in values
    )
    flags = [f"--{flag}" for flag in cli.flag_keys("vae")]
    pieces = ["--set", "--config", "--debugg", "--", "-x", "stray", *flags]
    said = []
    for number in range(250):
        if number % 2:
            more = ["--set", f"{rng.choice(keys)}={rng.choice(ODD)}"]
        else:
            more = [rng.choice((rng.choice(pieces), rng.choice(ODD))) for _ in range(rng.randint(1, 4))]
        line = shlex.join(["vae", "--config", "tiny.yaml", "--data_dir", "nowhere", "--output_dir", "new", *more])
        status, words = call(line, monkeypatch, capsys)
        assert (status, words.count("\n"), words[:7]) == (2, 0, "error: "), line
        said.append(words)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.yaml"]
    assert len(set(said)) > 100


@pytest.mark.parametrize("part", ["vae", "unet", "condition_encoder", "scheduler"])
def test_a_fuzzed_config_json_is_read_or_refused(world, part):
    rng, folder = random.Random(0), Path(L, part)
    path = next(folder.glob("*config.json"))
    text = path.read_bytes()
    values = json.loads(text)
    odd = (None, True, -1, 0, 1, 3, 0.5, 2**70, 1e300, -(2**63), float("nan"), float("inf"), "x", "", [], [8],
           [8, 16, 16], [[8]], {}, {"a": 1}, "\ud800", ["x"])  # fmt: skip
    said = []
    for number in range(120):
        if number % 2:
            path.write_text(json.dumps(values | {rng.choice(sorted(values)): rng.choice(odd)}))
        else:
            path.write_bytes(mutated(text, rng, (b"null", b"1e999", b"-1", b"{", b"\xff", b'"', b",")))
        read = model_folder.load_schedule if part == "scheduler" else model_folder.load
        said.append(sentence_of(lambda read=read: read(folder)))
    assert None in said
    assert len(set(said)) > 40


def test_fuzzed_safetensors_are_read_or_refused(world):
    rng, path = random.Random(0), Path(V, TENSORS)
    content = path.read_bytes()
    said = []
    for number in range(150):
        cut = rng.choice((len(content), 3000, 200))  # mostly in what describes the tensors
        head = mutated(content[:cut], rng, (b"F16", b"BOOL", b"C64", b"shape", b"}", b"[0,", b"-1"))
        path.write_bytes(head + content[cut:] if number % 5 else content[: rng.randrange(len(content))])
        said.append(sentence_of(lambda: model_folder.load(Path(V))))
    assert len(set(said)) > 10


PICKLED = (b"\x80\x02", b"cposix\nsystem\n", b"R", b".", b"K\x08", b"\x88", b"]", b"}", b"FloatStorage", b"IntStorage")


def pickle_mutated(content: bytes, rng: random.Random) -> bytes:
    """What torch.save wrote, with the pickle in it mutated; the archive around it is whole."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for name in old.namelist():
            piece = old.read(name)
            new.writestr(name, mutated(piece, rng, PICKLED) if name.endswith("data.pkl") else piece)
    return buffer.getvalue()


def test_fuzzed_pickles_of_weights_are_read_or_refused(world):
    rng, path = random.Random(0), Path(V, BIN)
    weights(V, lambda state: None)
    content = path.read_bytes()
    said = []
    for number in range(200):
        path.write_bytes(pickle_mutated(content, rng) if number % 4 else mutated(content, rng, PICKLED))
        said.append(sentence_of(lambda: model_folder.load(Path(V))))
    assert len(set(said)) > 5


def test_a_fuzzed_checkpoint_is_passed_over_and_named(world, capsys):
    """Its checksum is not what it was; and where the checksum is made to fit, it is read or passed over."""
    rng = random.Random(0)
    path = latest("v") / "state.pt"
    content, checksum = path.read_bytes(), path.with_name("checksum.json").read_text()
    for number in range(100):
        path.write_bytes(pickle_mutated(content, rng) if number % 3 else mutated(content, rng, PICKLED))
        path.with_name("checksum.json").write_text(checksum)
        if number % 2:
            edit(path.with_name("checksum.json"), **{path.name: hashlib.sha256(path.read_bytes()).hexdigest()})
        said = sentence_of(lambda: load_latest(path.parent.parent))
        altered = path.read_bytes() != content
        assert said == "v/checkpoints: no checkpoint in it is whole; remove it to start from the beginning" or (
            said is None and (number % 2 or not altered)
        )
