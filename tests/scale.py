"""How time and memory grow with the data set: `python -m tests.scale WORK docs/scale.md [PART ...]`

Makes pictures in the folder WORK, trains on them as `python -m train.ldm` does, and writes what that took. Each
measurement is kept in WORK and not made again. Every picture is a small one, rolled; the VAE's encoder is replaced by
averages of 4x4 pixels, since on a CPU the real one would take days. No part of the test suite; its record is in docs/.
"""

import argparse
import json
import math
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import zlib
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

AGAIN = "second", "third", "fourth"
DIVIDED = "sd in one process", "sd in two, by FSDP2"
BASE, SIDE = 200, 32  # small pictures, and their side in pixels
PARTS = {
    "large": [{"users": 31, "images": 300_000}, {"users": 31, "images": 300_000, "resolution": 64},
              {"users": 10_000, "images": 300_000, "resolution": 64, "cached": False}],
    "batch": [{"batch": batch} for batch in (1, 4, 16, 64)],
    "resolution": [{"resolution": side} for side in (64, 128, 256, 512)],
    "users": [{"users": users, "images": 3 * users} for users in (10, 100, 1000, 10_000)],
    "images": [{"images": images} for images in (1000, 10_000, 100_000, 1_000_000)],
    "fsdp": [{}],
}
LIGHT = """base: {root}/configs/light.yaml
data: {{dir: {data}, resolution: {resolution}}}
vae: {{channels: [4, 4, 4], latent_channels: 4, norm_groups: 4}}
ldm_training: {{output_dir: {run}, batch_size: {batch}, num_steps: 100000, mixed_precision: "no"}}
"""
SMALL = """base: {root}/configs/demo.yaml
data: {{dir: {data}, resolution: {resolution}, recordings_per_user: null}}
vae: {{channels: [4, 4, 4], latent_channels: 4, norm_groups: 4}}
ldm_training: {{output_dir: {run}, batch_size: {batch}, num_steps: {steps}}}
sampling: {{steps: 4}}
"""


# ---- pictures


def make_pictures(folder: Path, users: int, images: int) -> Path:
    """A folder of `images` JPEG files, each another one, divided among the users."""
    import numpy as np
    from PIL import Image

    if folder.exists():
        return folder
    making = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    waves = np.random.default_rng(0).integers(0, 256, (BASE, SIDE // 4, SIDE // 4, 3), np.uint8)
    waves = waves.repeat(4, 1).repeat(4, 2)
    for number in range(images):
        user, own = number % users, number // users
        shifted = np.roll(waves[number % BASE], divmod(number // BASE, SIDE), (0, 1)) ^ np.uint8(number // 204_800)
        place = making / f"ID{user + 1}"
        if not own:
            place.mkdir(parents=True)
        Image.fromarray(shifted).save(place / f"rec{own // 10:04d}_{own % 10}.jpg", quality=80)
    making.rename(folder)
    return folder


def link_pictures(folder: Path, source: Path, users: int, images: int) -> Path:
    """The same files as in `source`, by links, divided among other users; of few, each many times."""
    if folder.exists():
        return folder
    making = folder.with_name(f"{folder.name}.making")
    shutil.rmtree(making, ignore_errors=True)
    files = sorted(source.glob("*/*.jpg"))
    for number in range(images):
        user, own = number % users, number // users
        place = making / f"ID{user + 1}"
        if not own:
            place.mkdir(parents=True)
        os.link(files[number % len(files)], place / f"rec{own // 10:04d}_{own % 10}.jpg")
    making.rename(folder)
    return folder


# ---- what is measured in a process of its own, of which JSON is the last line


class Memory:
    """The most memory that this process has had to itself, without files that are mapped, which the system takes back
    when it needs room; looked at ten times a second, with what processes it has forked have to themselves.
    """

    def __init__(self):
        self.peak = 0
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        while True:
            self.peak = max(self.peak, own_memory(os.getpid()))
            time.sleep(0.1)


def own_memory(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text()
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return int(fields.get("RssAnon", "0 kB").split()[0]) * 1024 + sum(own_memory(int(child)) for child in children)


def pixels_of(path, config):
    """In place of decoding a picture: noise, that of each name another one."""
    import numpy as np
    import torch

    shape = (config.channels, config.resolution, config.resolution)
    noise = np.random.default_rng(0).integers(0, 256, shape, np.uint8) if shape not in NOISE else NOISE[shape]
    NOISE[shape], at = noise, zlib.crc32(f"{path.parent.name}/{path.name}".encode())
    return torch.from_numpy(np.roll(noise.ravel(), at % 40_009).reshape(shape) ^ np.uint8(at >> 24))


NOISE = {}


def every_fourth(vae, data, rows, device):
    """In place of the VAE's encoder."""
    import torch

    means = data.images[rows][:, [0, 1, 2, 0], ::4, ::4].float() / 127.5 - 1
    return torch.stack([means, torch.full_like(means, 0.1)], 1)


def train(config: str, steps: int) -> dict:
    """Start `train.ldm`: seconds to its first step; then, after one more, the median of steps and of their input."""
    began, memory = time.time(), Memory()
    import statistics

    from train import ldm
    from train.data import latents, pictures
    from train.data.latents import LatentSource, cached_moments
    from train.stages import ldm as stage
    from train.stages.ldm import LDMStage

    latents._encode, pictures.read_image = every_fourth, pixels_of
    common = Path(config).with_name("latents")  # of all runs, which have the same VAE
    stage.cached_moments = lambda vae, data, rows, folder, device: cached_moments(vae, data, rows, common, device)
    drawn, waited = [], []
    draw, read = LDMStage.draw, LatentSource.latents

    def timed_draw(stage, step, rows):
        drawn.append((work_done(), time.time() - began))
        if len(drawn) == steps + 2:
            raise SystemExit
        return draw(stage, step, rows)

    def timed_read(*args):
        start = work_done()
        found = read(*args)
        waited.append(work_done() - start)
        return found

    LDMStage.draw, LatentSource.latents = timed_draw, timed_read
    with suppress(SystemExit):
        ldm.main(["--config", config])
    seconds = [after - before for (before, _), (after, _) in pairwise(drawn[1:])]
    return {"to first step": drawn[0][0], "by the clock": drawn[0][1], "step": statistics.median(seconds),
            "input": statistics.median(waited), "peak": memory.peak}  # fmt: skip


def work_done() -> float:
    """Seconds for which cores have worked for this process, and for those that it forked and that have ended."""
    spent = os.times()
    return time.process_time() + spent.children_user + spent.children_system


def decode(folder: str) -> dict:
    """Seconds that it takes to decode a picture into a store, at 128x128, and to see that it has not changed."""
    from train.config.sections import DataConfig
    from train.data.dataset import load_images

    shutil.rmtree(os.environ["LDM_STORE"], ignore_errors=True)
    spent = [work_done()]
    for _ in range(2):
        images = len(load_images(DataConfig(folder)))
        spent.append(work_done())
    first, again = ((after - before) / images for before, after in pairwise(spent))
    return {"first": first, "again": again}


def index(folder: str) -> dict:
    """Times of what each start does with the names, the files and the store, at the smallest resolution."""
    memory = Memory()
    import torch

    from train.base.randomness import batch_rows
    from train.config.sections import DataConfig
    from train.data.dataset import load_images
    from train.data.folders import scan
    from train.data.split import fingerprint, load_split, make_split, save_split

    found, config, split = {}, DataConfig(folder, resolution=8, recording_pattern=r"^(rec\d+)_"), Path(f"{folder}.json")

    def timed(what, work):
        start = work_done()
        made = work()
        found[what] = work_done() - start
        return made

    timed("names", lambda: scan(folder))
    data = timed("first start", lambda: load_images(config))
    data = timed("second start", lambda: load_images(config))
    made = timed("new split", lambda: make_split(data, config))
    save_split(split, made, data, config)
    timed("saved split", lambda: load_split(split, data, config))
    timed("fingerprint", lambda: fingerprint(data, made))
    images = len(made.train)
    timed("order of an epoch", lambda: batch_rows(0, 0, images, 16))
    timed("rows of a step", lambda: [batch_rows(0, step, images, 16) for step in range(100)])
    rows = torch.randint(len(data), (100, 16))
    timed("16 images", lambda: [data.batch(some) for some in rows])
    return found | {"peak": memory.peak}


# ---- the parts


class Scale:
    def __init__(self, work: Path):
        self.work, self.kept = work, work / "measured.json"
        self.measured = json.loads(self.kept.read_text()) if self.kept.exists() else {"limit": limit()}
        work.mkdir(parents=True, exist_ok=True)

    def measure(self, name: str, *arguments: object) -> dict:
        """What a process of its own finds; the load of the machine before it is kept too."""
        if name not in self.measured:
            print(name, *arguments, flush=True)
            load = os.getloadavg()[0]
            words = ["tests.scale", "--inner", *arguments] if name not in DIVIDED else arguments
            run = ["torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m"] if name == DIVIDED[1] else []
            variables = os.environ | {"LDM_STORE": str(self.work / "stores"), "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", *run, *map(str, words)]
            ended = subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True)
            assert ended.returncode == 0, name
            self.measured[name] = json.loads(ended.stdout.splitlines()[-1]) | {"load": load}
            self.kept.write_text(json.dumps(self.measured, indent=1))
        return self.measured[name]

    def config(self, text: str, name: str, data: Path, **settings) -> str:
        name = name.replace(",", "").replace(" ", "_")
        run, path = self.work / "runs" / name, self.work / f"{name}.yaml"
        values = {"resolution": 128, "batch": 4, "steps": 10**5, "cached": True} | settings
        values["cached"] = str(values["cached"]).lower()
        values["data"], values["run"], values["root"] = data, run, Path(__file__).parents[1]
        vae = self.vae(path, text.format(**values))
        path.write_text(f"{text}latents: {{{{vae_path: {vae}, cache_latents: {{cached}}}}}}\n".format(**values))
        return str(path)

    def vae(self, path: Path, text: str) -> Path:
        """A VAE of 4 channels, for what its encoder does not do."""
        from dataclasses import replace

        from nets.vae import AutoencoderKL
        from train.config.schema import Config
        from train.runs import model_folder

        path.write_text(text)
        config = Config.read(path)
        folder = self.work / f"vae{config.vae.latent_channels}"
        if not folder.exists():
            model_folder.save(AutoencoderKL(replace(config.vae, scaling_factor=2.0)), folder)
        return folder

    def pool(self) -> Path:
        return make_pictures(self.work / "pool", 10, 1000)

    def large(self, users: int, images: int, **settings) -> None:
        name = large_name(users, images, **settings)
        source = make_pictures(self.work / "pictures", 31, images)
        data = source if users == 31 else link_pictures(self.work / f"of_{users}", source, users, images)
        if f"{name}, first start" not in self.measured:
            shutil.rmtree(self.work / "stores", ignore_errors=True)  # of other users' pictures: one takes much room
        self.measure("decode", "decode", self.pool())
        light = self.config(LIGHT, f"{name} light", data, **settings)
        self.measure(f"{name}, first start", "train", light, 1)
        for again in AGAIN:
            self.measure(f"{name}, {again} start", "train", light, 5)
        self.measure(f"{name}, small", "train", self.config(SMALL, f"{name} small", data, steps=12, **settings), 20)

    def grown(self, users: int = 10, images: int = 1000, **settings) -> None:
        data = link_pictures(self.work / f"{images}_of_{users}", self.pool(), users, images)
        name = self.name_of(users, **settings)
        self.measure(name, "train", self.config(SMALL, name, data, **settings), 5)

    @staticmethod
    def name_of(users: int = 10, images: int = 0, **settings) -> str:
        return f"small, {users} users" + "".join(f", {key} {value}" for key, value in settings.items())

    def indexed(self, images: int) -> None:
        data = link_pictures(self.work / f"index_{images}", self.pool(), 31, images)
        self.measure(f"index {images}", "index", data)
        shutil.rmtree(data)

    def fsdp(self) -> None:
        """`sd` in one process, whose results take 10 GiB of the disk, and in two."""
        folder = self.work / "fsdp"
        folder.mkdir(exist_ok=True)
        for name in DIVIDED:
            self.measure(name, "tests.fully_sharded", Path(__file__).parents[1] / "configs/sd.yaml", folder)
        shutil.rmtree(folder)


# ---- the record


def table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def number(value: float) -> str:
    """With three digits that count."""
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"


def exponent(sizes: list[float], values: list[float]) -> str:
    """Of the power law through the two largest sizes, where what does not grow matters least."""
    if len(sizes) < 2:
        return "-"
    return f"{math.log(values[-1] / values[-2]) / math.log(sizes[-1] / sizes[-2]):.2f}"


def curve(what: str, columns: dict[str, tuple[str, float]], found: dict[float, dict]) -> str:
    """A table by size: of each column a key of what was measured and a factor; the last row has the exponents."""
    sizes = sorted(found)
    rows = []
    for size in sizes:
        values = [number(found[size][key] * by) for key, by in columns.values()]
        rows.append([f"{size:,}", *values, f"{found[size]['load']:.1f}"])
    growth = [exponent(sizes, [found[size][key] for size in sizes]) for key, _ in columns.values()]
    return table([what, *columns, "load before"], [*rows, ["exponent", *growth, ""]])


STEP = {"step, s": ("step", 1), "of that its input, ms": ("input", 1e3), "memory at the peak, MiB": ("peak", 2**-20)}
START = {
    "names, s": ("names", 1), "first start, s": ("first start", 1), "second start, s": ("second start", 1),
    "new split, s": ("new split", 1), "saved split, s": ("saved split", 1), "fingerprint, s": ("fingerprint", 1),
    "order of an epoch, ms": ("order of an epoch", 1e3), "rows of a step, µs": ("rows of a step", 1e4),
    "16 images, µs": ("16 images", 1e4), "memory at the peak, MiB": ("peak", 2**-20),
}  # fmt: skip


def large_name(users: int, images: int, resolution: int = 128, **settings) -> str:
    return f"{images} of {users}, {resolution}x{resolution}"


def limit() -> str:
    """What the system lets this process and its children have, in words."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, kind, place = line.split(":", 2)
        for path in (f"/sys/fs/cgroup/memory{place}/memory.limit_in_bytes", f"/sys/fs/cgroup{place}/memory.max"):
            most = Path(path).read_text().strip() if kind in ("memory", "") and Path(path).exists() else "max"
            if most.isdigit() and int(most) < 2**50:
                return f"The processes had {int(most) / 2**30:.0f} GiB of memory, with what the system keeps of files"
    return "Their memory was not limited"


def record(scale: Scale) -> str:
    measured = scale.measured
    said = [INTRODUCTION.format(processor=platform.processor() or platform.machine(), cores=os.cpu_count())]
    rows = []
    for settings in PARTS["large"]:
        name = large_name(**settings)
        later = [measured[what] for again in AGAIN if (what := f"{name}, {again} start") in measured]
        if later:
            first, last, small = measured[f"{name}, first start"], later[-1], measured.get(f"{name}, small")
            starts = [", ".join(f"{start['to first step']:.1f} ({start['by the clock']:.0f})" for start in those)
                      for those in ([first], later)]  # fmt: skip
            peaks = [number(run["peak"] / 2**30) if run else "not measured" for run in (first, last, small)]
            side = settings.get("resolution", 128)
            rows.append([f"{settings['images']:,} of {side}x{side}", f"{settings['users']:,}", *starts,
                         number(last["step"]), number(1e3 * last["input"]), *peaks,
                         ", ".join(f"{start['load']:.1f}" for start in later)])  # fmt: skip
    heading = ["images", "users", "first start to its first step, s (by the clock)", "each later start",
               "step, s", "of that its input, ms", "peak of the first start, GiB", "of the last",
               "of the small model, to its end", "load before each later start"]  # fmt: skip
    if rows:
        first, again = (1e3 * measured["decode"][which] for which in ("first", "again"))
        said.append(LARGE.format(first=first, again=again, all=first * 300 / 60, limit=measured["limit"]))
        said.append(table(heading, rows))
    for part in ("batch", "resolution", "users"):
        found = {}
        for settings in PARTS[part]:
            name = scale.name_of(**settings)
            if name in measured:
                found[settings.get(part)] = measured[name]
        if found:
            said.append(f"## {CURVES[part]}\n\n{curve(part, STEP, found)}")
    sizes = [settings["images"] for settings in PARTS["images"]]
    found = {size: measured[f"index {size}"] for size in sizes if f"index {size}" in measured}
    if found:
        said.append(f"## {CURVES['images']}\n\n{curve('images', START, found)}")
    if DIVIDED[1] in measured:
        one, two = (measured[name] for name in DIVIDED)
        figures = {name: two[name] / 2**30 for name in ("whole", "layer")}
        figures |= {"one": one["peak"] / 2**30, "two": max(two["peak"]) / 2**30, "kept": max(two["kept"]) / 2**30}
        said.append(FSDP.format(**figures, gradient=two["gradient"], step=two["step"]))
    lacking = [f"a start with {size:,} images" for size in sizes if size not in found]
    lacking += ["anything on a GPU", "the VAE's own encoder on so many images", "pictures that are large on the disk",
                "a judgement of so many images, which has all of them in memory (it says beforehand how much that is)"]
    said.append(f"## Not measured\n\n{'; '.join(lacking)}.")
    return "\n\n".join([*said, ON_PAPER])


INTRODUCTION = """# How the input scales

Made by `python -m tests.scale` on {cores} cores ({processor}), which other programs used as well: the load before each
measurement is in its last column. Times are therefore seconds of work of one core, which is what a quiet machine takes,
but for its disk; where it is said, by the clock.

Pictures are JPEG files of 32x32 pixels, each another one. Where a training is measured, two stand-ins take the place of
what has nothing to do with the number of pictures but takes hours here: noise, of decoding a picture, and every fourth
pixel, of the VAE's encoder. Memory is what the process has to itself, with the processes that it forks; pages of mapped
files, which the system takes back when it needs room, are not in it."""
LARGE = """## Hundreds of thousands of pictures

To decode one, from a JPEG file of 32x32 pixels to 128x128, and to store it takes {first:.2f} ms of a core (300,000:
{all:.1f} minutes, divided by the number of cores); to find it at a start, and that it has not changed, {again:.3f} ms.
In the store it has 48 KiB, and its latents 32 KiB (300,000: 13.7 and 9.2 GiB).

To the first step is from the start of the process to the moment at which the first batch is drawn, with the reading of
the checkpoint and the building of the models; at the first start, with the stand-ins. `light` has batch 4 and runs on
the CPU; with 10,000 users its latents are not kept, but encoded in each step, by the stand-in. The small model is the
demo's UNet; it trains 12 steps, validates, looks for copies and writes its final model.

{limit}."""
FSDP = """## `sd` in two processes, by FSDP2

`python -m tests.fully_sharded` takes one step of the UNet of `configs/sd.yaml` (two latents of 4x16x16, fp32, AdamW)
in one process, and in two that divide it by torch's `fully_shard`, on the CPU with gloo. The gradients differ by
{gradient:.1e} of their length, the change of the weights by {step:.1e} of its own: AdamW's first step makes as much of
a gradient that is rounding as of any other. Each of the two keeps {kept:.2f} of the {whole:.2f} GiB of weights, and as
much of gradients and of both moments; the largest layer, which is whole while it computes, has {layer:.2f} GiB. At its
peak the process alone had {one:.1f} GiB to itself, and the larger of the two {two:.1f}. In the suite, a UNet with the
same levels has the gradients of one process to 1e-12 in float64 (tests/engine/test_fully_sharded.py)."""
CURVES = {
    "batch": "A step by its batch", "resolution": "A step by the side of its pictures (2 is as their pixels)",
    "users": "A step by the number of users", "images": "A start by the number of images",
}  # fmt: skip
ON_PAPER = Path(__file__).with_suffix(".md").read_text(encoding="utf-8")


def main() -> None:
    if sys.argv[1] == "--inner":
        work = {"train": lambda config, steps: train(config, int(steps)), "index": index,
                "decode": decode}[sys.argv[2]]
        print("\n" + json.dumps(work(*sys.argv[3:])))
        return
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("record", type=Path)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; those that are not named are not made")
    args = parser.parse_args()
    scale = Scale(args.work.absolute())
    for part in args.parts:
        measure = {"large": scale.large, "images": scale.indexed, "fsdp": scale.fsdp}.get(part, scale.grown)
        for settings in PARTS[part]:
            measure(**settings)
    args.record.write_text(record(scale).rstrip() + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
