"""Seeded fuzz of a model's folder: whatever is in it, it loads or is refused in one sentence, soon.

`python -m tests.runs.fuzz_weights SECONDS [SEED]` runs for as long as is asked; a test, for a few cases of each kind.
"""

import json
import random
import struct
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from nets.vae import AutoencoderKL, VAEConfig
from tests.commands.test_bad_input import PICKLED, mutated, pickle_mutated, sentence_of
from train.runs.model_folder import load, save
from train.runs.weights import PICKLED as BIN
from train.runs.weights import TENSORS

ODD = (
    None, True, -1, 0, 1, 2**63, 2**70, 1e300, "x", "", "\ud800", "F4", "F6_E2M3", "U8", "F64", [], [8], [-1], [0],
    [2**62, 2**62], [True, True], [8] * 50, [8, 16] * 40, {}, "a" * 100_000, "../a.safetensors", "/dev/zero",
)  # fmt: skip
SLOW = 10  # seconds
LONGEST = 2100


class Folder:
    """The folder of a small VAE, spoilt in one of several ways."""

    def __init__(self, path: Path):
        self.path = path
        torch.manual_seed(0)
        save(AutoencoderKL(VAEConfig((8, 16), norm_groups=4, scaling_factor=0.7)), path)
        self.state = load(path).state_dict()
        self.tensors, self.config = (path / TENSORS).read_bytes(), json.loads((path / "config.json").read_text())
        torch.save(self.state, path / BIN)
        self.zipped = (path / BIN).read_bytes()
        torch.save(self.state, path / BIN, _use_new_zipfile_serialization=False)
        self.pickled = (path / BIN).read_bytes()
        self.ways = (self.bytes, self.header, self.archive, self.stream, self.options, self.index)

    def spoil(self, number: int, rng: random.Random) -> None:
        for name in (TENSORS, BIN, f"{TENSORS}.index.json"):
            (self.path / name).unlink(missing_ok=True)
        (self.path / "config.json").write_text(json.dumps(self.config))
        self.ways[number % len(self.ways)](rng)

    def bytes(self, rng: random.Random) -> None:
        head = mutated(self.tensors[:3000], rng, (b"F16", b"F4", b"}", b"[0,", b"-1", b"module."))
        (self.path / TENSORS).write_bytes(head + self.tensors[3000:])

    def header(self, rng: random.Random) -> None:
        (length,) = struct.unpack("<Q", self.tensors[:8])
        entries = json.loads(self.tensors[8 : 8 + length])
        for _ in range(rng.randint(1, 3)):
            key = rng.choice(sorted(self.state))
            if isinstance(entries[key], dict) and rng.random() < 0.8:
                entries[key][rng.choice(("dtype", "shape", "data_offsets", "x"))] = rng.choice(ODD)
            else:
                entries[key] = rng.choice(ODD)
        text = json.dumps(entries).encode()
        (self.path / TENSORS).write_bytes(struct.pack("<Q", len(text)) + text + self.tensors[8 + length :])

    def archive(self, rng: random.Random) -> None:
        (self.path / BIN).write_bytes(pickle_mutated(self.zipped, rng))

    def stream(self, rng: random.Random) -> None:
        (self.path / BIN).write_bytes(mutated(self.pickled[:6000], rng, PICKLED) + self.pickled[6000:])

    def options(self, rng: random.Random) -> None:
        (self.path / BIN).write_bytes(self.zipped)
        changed = self.config | {rng.choice(sorted(self.config)): rng.choice(ODD)}
        (self.path / "config.json").write_text(json.dumps(changed))

    def index(self, rng: random.Random) -> None:
        (self.path / "a.safetensors").write_bytes(self.tensors)
        places = dict.fromkeys(self.state, "a.safetensors")
        if rng.random() < 0.7:
            places[rng.choice(sorted(places))] = rng.choice((*ODD, "config.json"))
        text = json.dumps({"weight_map": places}).encode()
        if rng.random() < 0.3:
            text = mutated(text, rng, (b"}", b'"', b"null"))
        (self.path / f"{TENSORS}.index.json").write_bytes(text)


def fuzz(path: Path, cases: int, seconds: float = float("inf"), seed: int = 0) -> Counter[str]:
    """What was said, "" of what loaded, and how often; any other end of a case is an error."""
    folder, rng, said, end = Folder(path), random.Random(seed), Counter(), time.monotonic() + seconds
    for number in range(cases):
        if time.monotonic() > end:
            break
        folder.spoil(number, rng)
        before = time.monotonic()
        sentence = sentence_of(lambda: load(path)) or ""
        assert "\n" not in sentence, sentence
        assert len(sentence) < LONGEST, sentence
        assert time.monotonic() - before < SLOW, sentence
        said[sentence] += 1
    return said


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        said = fuzz(Path(temporary), 10**9, float(sys.argv[1]), int(*sys.argv[2:]))
    print(f"{said.total()} cases, {said['']} of them loaded, {len(said)} different answers")
