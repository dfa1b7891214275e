"""The weights in a model's folder: written as one file, and read as whoever saved them has left them.

Read are `.safetensors` (where that package is installed) and `.bin` of torch.save, in one file or in several with an
index, under names with or without what a wrapper has put in front. Names, shapes and kinds are looked at first; only
then memory is taken, and every weight is copied into memory of its own.
"""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from train.base.errors import UserError, require, some
from train.base.files import LOAD_ERRORS, load_tensors, read_json, replacing
from train.base.first_bytes import not_numbers
from train.base.optional import optional
from train.base.sound import what_is_wrong

safetensors = optional("safetensors.torch", "safetensors")  # without it, weights are .bin files

WEIGHTS = "diffusion_pytorch_model"
TENSORS, PICKLED = f"{WEIGHTS}.safetensors", f"{WEIGHTS}.bin"
SHARD = re.compile(r"-\d+-of-\d+\.")
# Kinds that are read, and their names in a .safetensors; half of a byte, or an exponent alone, is no weight by itself.
KINDS = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip
# What torch.compile, FSDP and checkpointing put into the names of what they wrap.
WRAPPERS = re.compile(r"(?<![^.])(_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
MOST_PREFIXES = 8  # parts of a name that are looked at as a prefix
MOST_LEVELS = 4  # of dictionaries within each other


@dataclass(frozen=True)
class Stored:
    """A weight in a file, which is not read yet."""

    path: Path
    shape: tuple[int, ...]
    read: Callable[[], Tensor]


def save_weights(weights: dict[str, Tensor], folder: Path) -> None:
    """Write them (`.safetensors` where that package is installed, else `.bin`), in the place of an earlier model's."""
    written, other = (TENSORS, PICKLED) if safetensors else (PICKLED, TENSORS)
    with replacing(folder / written) as path:
        if safetensors:
            safetensors.save_file(weights, path, metadata={"format": "pt"})
        else:
            with open(path, "wb") as file:  # torch alone would not say why it could not write
                torch.save(weights, file)
    for stale in (other, f"{other}.index.json"):
        (folder / stale).unlink(missing_ok=True)


def load_weights(model: nn.Module, folder: Path) -> None:
    """Fill a model on the meta device with the folder's weights, in fp32 on the CPU.

    UserError where there are none, or such as do not fit the model, or are not such as training makes.
    """
    path, found = _find(folder)
    expected = model.state_dict()
    found = _under_our_names(path, found, expected)
    _require_fit(path, expected, found)
    model.to_empty(device="cpu")
    for key, tensor in model.state_dict().items():
        stored = found.pop(key)  # read, copied and forgotten one by one
        try:
            tensor.copy_(stored.read())
        except (*LOAD_ERRORS, *_safetensor_errors()) as error:
            raise UserError(f"{stored.path}: {key} cannot be read ({error}); save or copy the model again") from error
        wrong = what_is_wrong({key: tensor})
        require(not wrong, f"{stored.path}: {wrong}; use an earlier model")


# ---- files


def _find(folder: Path) -> tuple[Path, dict[str, Stored]]:
    """The file that says which weights there are, and the weights by their names in it."""
    for name, read in ((TENSORS, _read_tensors), (PICKLED, _read_pickled)):
        if name == TENSORS and not safetensors:
            continue
        whole, index = folder / name, folder / f"{name}.index.json"
        if _is_there(whole):
            return whole, read(whole)
        if _is_there(index):
            return index, _read_shards(index, read)
    there = [path for path in (folder / TENSORS, folder / f"{TENSORS}.index.json") if path.is_file()]
    require(not there, f"{''.join(map(str, there[:1]))}: reading it needs a package; run `pip install safetensors`")
    raise UserError(f"{folder}: holds neither {TENSORS} nor {PICKLED}{_hint(folder)}")


def _is_there(path: Path) -> bool:
    """UserError where something is, which is no file: of copied caches, links are left that lead nowhere."""
    is_file = os.path.isfile(path)
    what = "a link to nowhere" if not os.path.exists(path) else "a folder, a pipe or a device"
    require(is_file or not os.path.lexists(path), f"{path}: is {what} in the place of the file; copy the model again")
    return is_file


def _hint(folder: Path) -> str:
    """What to do in a folder that holds the weights under another name; a shard is no model."""
    others = sorted(path.name for path in folder.glob(f"{WEIGHTS}*"))
    indices = [name for name in others if name.endswith(".json")]
    variants = [name for name in others if name.endswith((".safetensors", ".bin")) and not SHARD.search(name)]
    for name in (*variants, *indices):  # such as .fp16.bin
        ending = ".safetensors" if ".safetensors" in name else ".bin"
        return f"; copy {name} to {WEIGHTS}{ending}{'.index.json' if name in indices else ''}"
    return "; of what it holds in pieces it lacks the index, a file *.index.json" if others else ""


def _read_shards(index: Path, read: Callable[[Path], dict[str, Stored]]) -> dict[str, Stored]:
    """The weights that an index (`{"weight_map": {name: file}}`) finds in files beside it."""
    places = read_json(index).get("weight_map")
    listed = isinstance(places, dict) and all(isinstance(file, str) for file in places.values())
    require(listed, f"{index}: 'weight_map' must say in which file each weight is")
    shards = {}
    for file in dict.fromkeys(places.values()):
        beside = Path(file).name == file
        require(beside, f"{index}: {file!r} is not the name of a file beside it")
        there = os.path.isfile(index.parent / file)  # of what can be no name either, such as one too long
        require(there, f"{index.parent / file}: is not there, but {index.name} names it; copy the model again")
        shards[file] = read(index.parent / file)
    for name, file in places.items():
        require(name in shards[file], f"{index.parent / file}: lacks {name}, which {index.name} places there")
    return {name: shards[file][name] for name, file in places.items()}


def _safetensor_errors() -> tuple[type[Exception], ...]:
    return (optional("safetensors", "safetensors").SafetensorError,) if safetensors else ()


def _read_tensors(path: Path) -> dict[str, Stored]:
    """The weights in a `.safetensors`."""
    try:
        wrong = not_numbers(path)
        require(not wrong, f"{path}: {wrong}")
        file = safetensors.safe_open(path, framework="pt")
        pieces = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no dictionary)
        kinds = {name: piece.get_dtype() for name, piece in pieces.items()}
        shapes = {name: tuple(piece.get_shape()) for name, piece in pieces.items()}
    except (*LOAD_ERRORS, *_safetensor_errors()) as error:
        raise UserError(f"{path}: cannot be read ({error}); save or copy the model again") from error
    for name, kind in kinds.items():
        require(kind in KINDS.values(), f"{path}: {name} is not a plain tensor of real numbers, but of {kind}")
    return {name: Stored(path, shape, lambda name=name: file.get_tensor(name)) for name, shape in shapes.items()}


def _read_pickled(path: Path) -> dict[str, Stored]:
    """The weights that torch.save wrote, by themselves or in a dictionary beside other things."""
    loaded = load_tensors(path)
    inside = dict(_weights_in(loaded))
    require(len(inside) < 2, f"{path}: holds weights under {some(list(inside))}; save those that are meant alone")
    weights = next(iter(inside.values()), loaded)
    for key, value in weights.items():
        is_weight = isinstance(key, str) and isinstance(value, Tensor)
        require(is_weight, f"{path}: {key!r} is no weight, but {type(value).__name__}")
        plain = value.layout == torch.strided and not (value.is_meta or value.is_nested) and value.dtype in KINDS
        require(plain, f"{path}: {key} is not a plain tensor of real numbers")
    return {key: Stored(path, tuple(value.shape), lambda value=value: value) for key, value in weights.items()}


def _weights_in(value: dict, name: str = "", levels: int = MOST_LEVELS) -> Iterator[tuple[str, dict]]:
    """Dictionaries that hold weights, with their dotted names; what an optimizer keeps stands under numbers."""
    if any(isinstance(item, Tensor) and item.is_floating_point() and item.ndim for item in value.values()):
        yield name, value
    elif levels:
        for key, item in value.items():
            if isinstance(key, str) and isinstance(item, dict):
                yield from _weights_in(item, f"{name}.{key}".lstrip("."), levels - 1)


# ---- names and shapes


def _under_our_names(path: Path, found: dict[str, Stored], expected: dict[str, Tensor]) -> dict[str, Stored]:
    """The weights by their present names, without what most have in front of the expected ones, as in `module.`."""
    count, found = len(found), {_present_name(key): stored for key, stored in found.items()}
    prefixes: Counter[str] = Counter()
    for key in found:
        parts = key.split(".", MOST_PREFIXES)
        for number in range(len(parts)):
            prefix = "".join(f"{part}." for part in parts[:number])
            prefixes[prefix] += key[len(prefix) :] in expected
    prefix = max(prefixes, key=prefixes.__getitem__, default="")
    found = {key.removeprefix(prefix): stored for key, stored in found.items()}
    require(len(found) == count, f"{path}: has a weight under two names; its config.json is another model's")
    return found


def _present_name(key: str) -> str:
    """The present name of a weight; `diffusers` before 0.12 had other names in the VAE's attention."""
    key = WRAPPERS.sub("", key)
    for old, new in (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0")):
        key = key.replace(f"mid_block.attentions.0.{old}.", f"mid_block.attentions.0.{new}.")
    return key


def _require_fit(path: Path, expected: dict[str, Tensor], found: dict[str, Stored]) -> None:
    """UserError unless the weights have the expected names and shapes."""
    missing, unexpected = expected.keys() - found.keys(), found.keys() - expected.keys()
    for what, keys in (("lacks", missing), ("has an unexpected", unexpected)):
        first = min(keys, default="")
        require(not keys, f"{path}: {what} {first} ({len(keys)} such); its config.json is another model's")
    for key, tensor in expected.items():
        shape, wanted = found[key].shape, tuple(tensor.shape)
        fits = shape == wanted
        require(fits, f"{found[key].path}: {key} has shape {shape}, but the config.json beside means {wanted}")
