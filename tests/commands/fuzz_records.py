"""Seeded fuzz of the small texts that commands leave and read again: each is read, or refused in one sentence, soon.

`python -m tests.commands.fuzz_records SECONDS [SEED]` runs for as long as is asked; a test, for a few cases of each.
"""

import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from dataclasses import dataclass
from functools import partial
from io import StringIO
from pathlib import Path

from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from tests.commands.test_bad_input import mutated, sentence_of
from tests.tiny import PATH, make_images, tiny, tiny_denoiser, tiny_vae
from train import simulate
from train.base.files import writing
from train.base.folders import INCOMPLETE, filling
from train.config.schema import Config
from train.data.dataset import load_images
from train.data.split import adapt_split, load_split, make_split, training_images
from train.engine.log import METRICS, RunLog
from train.judge import purpose
from train.judge.manifest import verdict
from train.runs import augmented, final_model, generated, model_folder
from train.runs.checkpoint import load_latest, save_checkpoint
from train.runs.users import load_users

VALUES = (
    None, True, -1, 0, 1, 2**63, 2**70, 1e300, 0.5, float("nan"), float("inf"), "x", "", "\ud800", "a\nb", "é", "..",
    "a" * 10_000, [], [8], [True], [[8]], ["x"], {}, {"a": 1}, "/dev/zero",
)  # fmt: skip
WORDS = (b"null", b"1e999", b"-1", b"{", b"[", b"[" * 3000, b"9" * 5000, b"}", b"\xff", b'"', b",", b"\n", b": ", b"\0",
         b"&a ", b"*a", b"- ", b"\xef\xbb\xbf", b"<html>")  # fmt: skip
SLOW = 10  # seconds
LONGEST = 2100


@dataclass(frozen=True)
class Record:
    """A file, and all that reads it."""

    path: Path
    content: bytes
    read: Callable[[], object]


def spoilt(content: bytes, rng: random.Random) -> bytes:
    """Bytes changed, or, in a JSON object, a value somewhere in it."""
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    if not isinstance(value, dict) or rng.random() < 0.4:
        return mutated(content, rng, WORDS)
    place, key = value, rng.choice(sorted(value))
    while isinstance(place[key], dict | list) and place[key] and rng.random() < 0.7:
        place = place[key]
        key = rng.choice(sorted(place)) if isinstance(place, dict) else rng.randrange(len(place))
    if rng.random() < 0.2:
        del place[key]
    else:
        place[key] = rng.choice(VALUES)
    return json.dumps(value).encode()


def records(folder: Path) -> list[Record]:
    """All such files of a run that was never trained, in its folder."""
    config = tiny(f"data.dir={make_images(folder / 'data')}")
    data = load_images(config.data)
    model, run, made = folder / "run/final_model", folder / "run", folder / "made"
    final_model.save_ldm(model, tiny_denoiser(config), tiny_vae(config), config, data, make_split(data, config.data))
    trained = final_model.load_ldm(model, config)
    settings = generated.settings_of(config.sampling, 0, trained)
    of = json.loads(json.dumps(settings))
    del of["sampling"]["guidance"]
    chosen = {"guidance": 1.5, "mix_above": None}

    found = []

    def record(path: Path, content: dict | str | None, *reads: Callable[[], object]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        found.extend(Record(path, path.read_bytes(), read) for read in reads)

    for part, kind in (("vae", AutoencoderKL), ("unet", UNet2DConditionModel), ("condition_encoder", None)):
        record(model / part / "config.json", None, partial(model_folder.load, model / part, kind))
    record(model / "scheduler/scheduler_config.json", None, partial(model_folder.load_schedule, model / "scheduler"))
    record(model / "users.json", None, partial(load_users, model))
    split = model / "split.json"
    record(split, None, partial(load_split, split, data, config.data), partial(adapt_split, [split], data, config.data),
           partial(training_images, split))  # fmt: skip
    record(model / "config.yaml", None, partial(Config.read, model / "config.yaml"))
    record(folder / "tiny.yaml", PATH.read_text(), partial(Config.read, folder / "tiny.yaml"))
    record(run / purpose.NAME, {"chosen": chosen, "tried": [chosen], "of": of},
           lambda: purpose.for_a_classifier(model, config, trained, choose=False))  # fmt: skip
    record(made / generated.SETTINGS, settings,
           partial(generated.refuse_others, made / generated.SETTINGS, settings, "x", "y"),
           partial(generated.are_mixed, made))  # fmt: skip
    judged = {"images": str(folder / "whole"), "data": {"generated_images": 7}, "verdict": {"held_out": "they help"}}
    record(folder / "whole" / augmented.EVALUATION, judged, partial(judgement, folder / "whole"))
    rows = "file,user,kind\nID1/0.png,ID1,real\nID1/generated_000.png,ID1,generated\n"
    record(folder / "whole" / augmented.AUGMENTED, settings, partial(generated.are_mixed, folder / "whole"))
    record(folder / "whole" / augmented.MANIFEST, rows,
           partial(augmented.generated_only, folder / "whole", ["ID1/0.png", "ID1/generated_000.png"]))  # fmt: skip
    record(folder / "part" / INCOMPLETE, {"files": ["a", "b"]}, partial(add_to, folder / "part"))
    record(folder / "moved" / simulate.MOVING, {"users": ["ID1"]},
           partial(take_back, folder / "moved", folder / "data"))  # fmt: skip
    lines = "".join(json.dumps({"step": step, "loss": 0.1 * step}) + "\n" for step in range(5))
    record(run / METRICS, lines, partial(draw_curves, run))
    saved = save_checkpoint(run / "checkpoints", 1, {}, keep=1)
    record(saved / "checksum.json", None, partial(load_latest, run / "checkpoints"))
    return found


def add_to(folder: Path) -> None:
    with filling(folder, [folder / "c"]):
        pass


def judgement(folder: Path) -> None:
    found = augmented.bring_report(None, folder)
    if found:
        verdict(found, folder)


def take_back(part: Path, output: Path) -> None:
    with writing(output):
        simulate.take_back(part, output)


def draw_curves(folder: Path) -> None:
    log = RunLog(folder, start_step=3)
    log.save_curves("title", [["loss"]])


def fuzz(folder: Path, cases: int, seconds: float = float("inf"), seed: int = 0) -> Counter[tuple[str, str]]:
    """What was said of a file, "" of what was read, and how often; any other end of a case is an error."""
    there, rng, said, end = records(folder), random.Random(seed), Counter(), time.monotonic() + seconds
    for number in range(cases):
        if time.monotonic() > end:
            break
        record = there[number % len(there)]
        record.path.write_bytes(spoilt(record.content, rng))
        began = time.monotonic()
        with redirect_stderr(StringIO()):
            sentence = sentence_of(record.read) or ""
        record.path.write_bytes(record.content)
        assert "\n" not in sentence, sentence
        assert len(sentence) < LONGEST, sentence
        assert time.monotonic() - began < SLOW, sentence
        said[record.path.name, sentence] += 1
    return said


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        said = fuzz(Path(temporary), 10**9, float(sys.argv[1]), int(*sys.argv[2:]))
    read = sum(count for (_, sentence), count in said.items() if not sentence)
    print(f"{said.total()} cases, {read} of them read, {len(said)} different answers")
