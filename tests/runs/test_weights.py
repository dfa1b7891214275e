"""Weights as other programs leave them are read, or refused by what they are before they take memory."""

import gc
import json
import os
import resource
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path

import diffusers
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from nets.vae import AutoencoderKL, VAEConfig
from tests.runs.fuzz_weights import fuzz
from train.base.errors import UserError
from train.runs import weights
from train.runs.model_folder import load, save
from train.runs.weights import load_weights

TENSORS, BIN = weights.TENSORS, weights.PICKLED
VAE = VAEConfig((8, 16), norm_groups=4, scaling_factor=0.7)
MiB = 2**20
LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2\n"


@pytest.fixture(scope="module")
def vae(tmp_path_factory) -> tuple[Path, dict[str, Tensor]]:
    folder = tmp_path_factory.mktemp("vae")
    torch.manual_seed(0)
    save(AutoencoderKL(VAE), folder)
    return folder, load(folder).state_dict()


@pytest.fixture
def saved(vae, tmp_path) -> tuple[Path, dict[str, Tensor]]:
    """The folder of a small VAE, to be spoilt, and its weights."""
    shutil.copytree(vae[0], tmp_path, dirs_exist_ok=True)
    return tmp_path, dict(vae[1])


def only(folder: Path, name: str, content: object) -> Path:
    """`content` becomes the folder's weights, in a file of that name."""
    (folder / TENSORS).unlink(missing_ok=True)
    if name.endswith(".safetensors"):
        safetensors.torch.save_file(content, folder / name)
    elif isinstance(content, str):
        (folder / name).write_text(content)
    else:
        torch.save(content, folder / name)
    return folder / name


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def same(model: nn.Module, state: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())


# ---- names


@pytest.mark.parametrize("name", [TENSORS, BIN])
@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "vae.", "module._orig_mod.", "a.b.c."])
def test_a_prefix_that_all_names_share_is_taken_off(saved, name, prefix):
    folder, state = saved
    only(folder, name, {prefix + key: tensor for key, tensor in state.items()})
    assert same(load(folder), state)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_what_wrappers_put_within_names_is_taken_off(saved, wrapper):
    folder, state = saved
    only(folder, BIN, {key.replace(".mid_block.", f".{wrapper}.mid_block."): t for key, t in state.items()})
    assert same(load(folder), state)


def test_a_name_beside_the_prefixed_ones_is_named(saved):
    folder, state = saved
    only(folder, BIN, {"n_averaged": torch.ones(1)} | {f"module.{key}": tensor for key, tensor in state.items()})
    assert "has an unexpected n_averaged (1 such)" in refused(folder)


def test_a_weight_under_two_names_is_refused(saved):
    folder, state = saved
    only(folder, BIN, {"conv.bias": torch.ones(1)} | state | {"_orig_mod.quant_conv.bias": torch.ones(8)})
    assert "has a weight under two names" in refused(folder)


@pytest.mark.parametrize(
    "around",
    [
        lambda state: {"state_dict": state},
        lambda state: {"epoch": 3, "step": torch.tensor(7), "rng": torch.get_rng_state(), "model": state},
        lambda state: {"checkpoint": {"ema": {f"module.{key}": tensor for key, tensor in state.items()}}},
        lambda state: {"net": state, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}},
    ],
)
def test_weights_within_a_dictionary_are_found(saved, around):
    folder, state = saved
    only(folder, BIN, around(state))
    assert same(load(folder), state)


def test_two_sets_of_weights_in_a_file_are_both_named(saved):
    folder, state = saved
    only(folder, BIN, {"model": state, "ema": state})
    assert "holds weights under model, ema; save those that are meant alone" in refused(folder)


# ---- files


def shard(folder: Path, name: str, state: dict[str, Tensor]) -> dict[str, str]:
    """Write the weights in two pieces, as `diffusers` does; returns the index's map."""
    stem, _, ending = name.partition(".")
    places = {}
    for number in (1, 2):
        file = f"{stem}-0000{number}-of-00002.{ending}"
        piece = {key: state[key] for key in sorted(state)[number - 1 :: 2]}
        only(folder, file, piece)
        places |= dict.fromkeys(piece, file)
    (folder / f"{name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return places


@pytest.mark.parametrize("name", [TENSORS, BIN])
def test_weights_in_shards_are_read(saved, name):
    folder, state = saved
    shard(folder, name, state)
    assert same(load(folder), state)


def test_shards_that_diffusers_wrote_are_read(saved):
    folder, state = saved
    theirs = diffusers.AutoencoderKL.from_pretrained(folder)
    (folder / TENSORS).unlink()
    theirs.save_pretrained(folder, max_shard_size="100KB")
    assert len(list(folder.glob("*-of-*.safetensors"))) > 1
    assert same(load(folder), state)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda places: places | {"conv.bias": "../x.safetensors"}, "'../x.safetensors' is not the name of a file"),
        (lambda places: places | {"conv.bias": "x.safetensors"}, "x.safetensors: is not there, but"),
        (lambda places: places | {"conv.bias": min(places.values())}, "lacks conv.bias, which"),
        (lambda places: places | {"conv.bias": 3}, "'weight_map' must say"),
        (lambda places: None, "'weight_map' must say"),
    ],
)
def test_an_index_that_does_not_fit_its_shards_is_refused(saved, change, words):
    folder, state = saved
    places = change(shard(folder, TENSORS, state))
    (folder / f"{TENSORS}.index.json").write_text(json.dumps({"weight_map": places}))
    assert words in refused(folder)


def test_a_hint_never_offers_a_shard(saved):
    folder, state = saved
    shard(folder, TENSORS, state)
    index = folder / f"{TENSORS}.index.json"
    index.rename(folder / f"{TENSORS}.index.fp16.json")
    assert refused(folder).endswith(f"; copy {TENSORS}.index.fp16.json to {TENSORS}.index.json")
    (folder / f"{TENSORS}.index.fp16.json").unlink()
    assert refused(folder).endswith("; of what it holds in pieces it lacks the index, a file *.index.json")


@pytest.mark.parametrize("name", [TENSORS, BIN, "config.json"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (LFS, "is a Git LFS pointer in the place of the file; run git lfs pull"),
        ("\ufeff\n<!DOCTYPE html><html><head><title>", "is a web page in the place of the file; download the file"),
        ("<?xml version='1.0'?><Error><Code>AccessDenied", "is a web page in the place of the file; download"),
        ("", "is empty; save or copy it again"),
    ],
)
def test_what_stands_in_a_files_place_is_known_by_its_first_bytes(saved, name, content, words):
    folder, _ = saved
    if name == BIN:
        (folder / TENSORS).unlink()
    (folder / name).write_text(content)
    assert refused(folder).startswith(f"{folder / name}: {words}")


@pytest.mark.parametrize("name", [TENSORS, BIN, f"{TENSORS}.index.json"])
def test_what_is_there_and_no_file_is_said(saved, name):
    """As in a cache of downloads that was copied without what its links lead to."""
    folder, _ = saved
    (folder / TENSORS).unlink()
    place = folder / name
    for make, what in (
        (lambda: place.symlink_to("blob"), "a link to nowhere"), (lambda: place.symlink_to(name), "a link to nowhere"),
        (lambda: os.mkfifo(place), "a folder, a pipe or a device"), (place.mkdir, "a folder, a pipe or a device"),
    ):  # fmt: skip
        make()
        assert refused(folder) == f"{place}: is {what} in the place of the file; copy the model again"
        place.rmdir() if place.is_dir() else place.unlink()
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("blob")
    assert refused(folder) == f"{folder / 'config.json'}: is a link to nowhere; copy the file that it means"


@pytest.mark.parametrize("name", [TENSORS, BIN])
def test_text_in_the_place_of_weights_is_quoted(saved, name):
    folder, _ = saved
    only(folder, BIN, "Entry not found")
    (folder / BIN).rename(folder / name)
    assert "is text, which begins with 'Entry not found'; save or copy it again" in refused(folder)


def test_a_config_that_is_a_pipe_or_a_device_is_refused_at_once(saved):
    folder, _ = saved
    (folder / "config.json").unlink()
    (folder / "config.json").symlink_to("/dev/zero")
    assert refused(folder).endswith("config.json: cannot be read (not a file, but a pipe or a device)")
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert refused(folder).endswith("config.json: cannot be read (not a file, but a pipe or a device)")


# ---- tensors


def test_every_weight_has_memory_of_its_own(saved):
    """Else a step would move two at once, and what was trained could not be saved as safetensors."""
    folder, state = saved
    names = [key for key in state if state[key].shape == (8,)][:2]
    shared = torch.linspace(0, 1, 8)
    state |= dict.fromkeys(names, shared) | {"encoder.conv_out.bias": torch.full((1,), 0.5).expand(8)}
    state["post_quant_conv.weight"] = state["post_quant_conv.weight"].permute(1, 0, 2, 3)
    only(folder, BIN, state)
    model = load(folder)
    assert same(model, state)
    assert len({p.untyped_storage().data_ptr() for p in model.parameters()}) == len(list(model.parameters()))
    assert all(p.is_contiguous() for p in model.parameters())
    with torch.no_grad():
        model.get_parameter(names[0]).add_(1)
    assert torch.equal(model.get_parameter(names[1]), shared)
    save(model, folder / "again")


@pytest.mark.parametrize("kind", list(weights.KINDS))
@pytest.mark.parametrize("name", [TENSORS, BIN])
def test_weights_of_any_precision_become_fp32(saved, kind, name):
    folder, state = saved
    state = {key: tensor.to(kind) for key, tensor in state.items()}
    only(folder, name, state)
    assert same(load(folder), {key: tensor.float() for key, tensor in state.items()})


ODD = {
    "float4": lambda: torch.zeros(8, dtype=torch.uint8).view(torch.float4_e2m1fn_x2),
    "exponents": lambda: torch.zeros(8, dtype=torch.uint8).view(torch.float8_e8m0fnu),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(3), torch.ones(5)]),
    "sparse": lambda: torch.eye(8).to_sparse(),
    "complex": lambda: torch.ones(8, dtype=torch.complex64),
    "integers": lambda: torch.ones(8, dtype=torch.int64),
    "booleans": lambda: torch.ones(8, dtype=torch.bool),
    "quantized": lambda: torch.quantize_per_tensor(torch.ones(8), 0.1, 0, torch.qint8),
    "meta": lambda: torch.ones(8, device="meta"),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ODD)
def test_a_tensor_that_is_no_weight_is_named(saved, kind):
    folder, state = saved
    only(folder, BIN, state | {"encoder.conv_in.bias": ODD[kind]()})
    said = refused(folder)
    assert "encoder.conv_in.bias is not a plain tensor" in said or "refused: damaged" in said


@pytest.mark.parametrize("kind", ["float4", "exponents", "integers", "booleans", "complex"])
def test_a_safetensor_that_is_no_weight_is_named(saved, kind):
    folder, state = saved
    only(folder, TENSORS, state | {"encoder.conv_in.bias": ODD[kind]()})
    assert "encoder.conv_in.bias is not a plain tensor of real numbers, but of " in refused(folder)


@pytest.fixture
def little_memory() -> Iterator[None]:
    """Whatever wants 64 MiB more than there are now fails, and not with the sentence."""
    gc.collect()
    before, now = resource.getrlimit(resource.RLIMIT_AS), int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (now * resource.getpagesize() + 64 * MiB, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def test_little_memory_is_what_it_says(little_memory):
    with pytest.raises(RuntimeError, match="allocate"):
        torch.zeros(128 * MiB, dtype=torch.uint8)


@pytest.fixture
def expanded(saved) -> Path:
    folder, state = saved
    only(folder, BIN, state | {"encoder.conv_in.bias": torch.ones(1, dtype=torch.half).expand(1024 * MiB)})
    return folder


def test_an_expanded_tensor_takes_no_memory_before_its_shape_is_seen(expanded, little_memory):
    assert f"encoder.conv_in.bias has shape ({1024 * MiB},)" in refused(expanded)


@pytest.fixture
def compressed(saved) -> Path:
    folder, state = saved
    only(folder, BIN, state | {"encoder.conv_in.bias": torch.zeros(20 * MiB)})
    with zipfile.ZipFile(folder / BIN) as old, zipfile.ZipFile(folder / "x", "w", zipfile.ZIP_DEFLATED, True, 1) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    (folder / "x").rename(folder / BIN)
    return folder


def test_a_compressed_archive_is_refused_before_it_is_unpacked(compressed, little_memory):
    assert "is a compressed archive, of 80" in refused(compressed)


def test_weights_that_do_not_fit_leave_the_model_without_memory(saved):
    folder, _ = saved
    with torch.device("meta"):
        other = AutoencoderKL(VAEConfig((8, 32), norm_groups=4))
    with pytest.raises(UserError, match="has shape"):
        load_weights(other, folder)
    assert all(parameter.is_meta for parameter in other.parameters())


def test_a_fuzzed_folder_of_a_model_is_read_or_refused(tmp_path):
    said = fuzz(tmp_path, 60)
    assert said[""] > 0
    assert len(said) > 20
