"""What tests/engine/test_parallel.py runs, in one process by calling it and in two by torchrun; the laws are there."""

import contextlib
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from PIL import Image
from torch.profiler import record_function

from tests.engine.problem import Taken, latent_stage, take_step
from tests.float64 import float64
from tests.tiny import PATH, tiny, tiny_images, tiny_vae
from train import ldm, vae
from train.base import processes
from train.base.errors import Stopped, UserError
from train.base.files import tensors_hash
from train.base.randomness import batch_rows, generator
from train.config import cli
from train.data import latents
from train.data.latents import cached_moments
from train.engine import step, trainer
from train.engine.micro_batch import MicroBatch
from train.engine.optim import kept_here
from train.engine.parallel import Losses
from train.engine.precision import GradScaler
from train.engine.step import Learner, mean_losses
from train.engine.stopping import in_one_piece
from train.engine.trainer import Trainer
from train.runs.checkpoint import save_checkpoint

CONSTANT = ("ldm_training.optimizer.lr_schedule=constant", "ldm_training.optimizer.warmup_steps=0")
SHARDED = ("ldm_training.shard_optimizer=true", "ldm_training.gradient_checkpointing=true")  # as in configs/sd.yaml


class Denoising:
    """A small LDM that learns, in batches, from `samples` latents."""

    def __init__(
        self, samples: int, batch: int, micro_batch: int, shard: bool = False, tokens: int = 1, lean: bool = True
    ):
        self.samples, self.batch, self.micro_batch = samples, batch, micro_batch
        config = tiny(f"user_encoder.tokens_per_user={tokens}", "ldm_loss.condition_dropout=0.3", *CONSTANT,
                      f"ldm_training.lean_activations={lean}", *(SHARDED if shard else ()))  # fmt: skip
        self.stage = latent_stage(config, torch.randn(samples, 4, 8, 8, generator=generator(0, "images")))
        self.model, self.learner = self.stage.model, self.stage.learner

    def step(self, number: int, bad_row: int | None = None, take: Callable[..., Taken] = take_step) -> Taken:
        """The loss of the batch's row `bad_row` is infinite."""
        rows = batch_rows(0, number, self.samples, self.batch)
        batch = self.stage.draw(number, rows)

        def losses(part: slice) -> dict[str, torch.Tensor]:
            with record_function("micro-batch"):
                loss = self.stage.losses(batch, part)["loss"]
                if bad_row in range(part.start, part.stop):
                    loss = loss * float("inf")
                return {"loss": loss, "rows": torch.ones(len(loss))}

        return take(self.learner, losses, len(rows), self.micro_batch)

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.clone() for name, weight in self.model.state_dict().items()}


@float64()
def learn(*args, steps: int = 8, take: Callable[..., Taken] = take_step, **options) -> dict:
    """Weights, losses and norms after some steps."""
    run = Denoising(*args, **options)
    results = [run.step(number, take=take) for number in range(steps)]
    return {
        "weights": run.weights(),
        "losses": [result.losses["loss"] for result in results],
        "norms": [result.grad_norm for result in results],
    }


def take_short_of_memory(learner: Learner, losses: Losses, batch: int, micro_batch: int) -> Taken:
    """A step in which the second process runs out of memory once, in its last micro-batch."""
    room = MicroBatch(replace(tiny().ldm_training, auto_batch=True), micro_batch)
    attempts = []

    def short(rows: slice) -> dict[str, torch.Tensor]:
        if len(attempts) == 1 and rows.stop == batch:
            attempts.append("failed")
            raise torch.OutOfMemoryError("injected")
        return losses(rows)

    def attempt(size: int) -> dict[str, torch.Tensor]:
        attempts.append("begun")
        return learner.accumulate(short, batch, size)

    while (totals := room.attempt(attempt, room.size)) is None:
        room.halve()
    assert attempts == (["begun", "failed", "begun"] if processes.rank() == 1 else ["begun"])
    grad_norm, means = learner.clip(), mean_losses(totals)
    return Taken(learner.step(means["loss"], grad_norm), means, grad_norm)


def communication(micro_batch: int) -> list[str]:
    """What a step does, in the order of time: "micro-batch", and the names of collective operations."""
    run = Denoising(14, 7, micro_batch)
    run.step(0)  # which ends with the gradients put into buckets, once for all
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        run.step(1)
    events = [event for event in profile.events() if event.name.startswith(("micro-batch", "c10d::"))]
    return [event.name for event in sorted(events, key=lambda event: event.time_range.start)]


def gradients() -> list[set[int]]:
    """Where they are before each micro-batch of a run's steps, but for its first."""
    run, found = Denoising(14, 7, 2), []
    run.step(0)
    run.model.unet.register_forward_pre_hook(
        lambda *_: found.append({p.grad.data_ptr() for p in run.model.trained_parameters() if p.grad is not None})
    )
    for number in (1, 2, 3):
        run.step(number)
    return found


def order() -> tuple[list[int], list[int]]:
    """Parameters as their gradients lie in the buckets, and as these come in a backward pass."""
    run, come = Denoising(14, 7, 7), []
    trained = run.model.trained_parameters()
    run.step(0)
    for i, p in enumerate(trained):
        p.register_post_accumulate_grad_hook(lambda _, i=i: come.append(i))
    run.step(1)
    return sorted(range(len(trained)), key=lambda i: trained[i].grad.data_ptr()), come


def overflow(bad_row: int) -> dict:
    """An overflow of fp16 in one row of a batch, then a batch without one; then one in fp32."""
    run = Denoising(14, 7, 2)
    run.learner.scaler = GradScaler("cpu", init_scale=1024.0)
    run.step(0)
    before = run.weights()
    bad = run.step(1, bad_row)
    unchanged = all(torch.equal(before[name], weight) for name, weight in run.weights().items())
    scale, good = run.learner.scaler.get_scale(), run.step(1)
    run.learner.scaler = GradScaler("cpu", enabled=False)
    try:
        run.step(2, bad_row)
        sentence = ""
    except UserError as error:
        sentence = str(error)
    return {"taken": (bad.taken, good.taken), "unchanged": unchanged, "scale": scale, "sentence": sentence}


@float64()
def sharding() -> dict:
    """How many numbers of the optimizer's state this process has, and the state that a checkpoint would hold."""
    run = Denoising(14, 7, 7, shard=True)
    run.step(0)
    optimizer = run.learner.optimizer
    own = sum(value.numel() for state in kept_here(optimizer).values() for value in state.values() if value.dim())
    return {"own": own, "saved": optimizer.state_dict()}


def encoded(folder: Path, stopped_in: int | None = None) -> dict:
    """Latents of 20 images in batches of 4 or less; with `stopped_in`, the first process is asked to stop while the
    second is at the batch of this number. How many images this process encoded, and what was said.
    """
    config, data, counts = tiny(), tiny_images(20), []
    vae = tiny_vae(config)
    whole = vae.encode

    def encode(x: torch.Tensor):
        counts.append(len(x))
        if len(counts) == stopped_in and processes.rank() == 0:
            os.kill(os.getpid(), signal.SIGTERM)
        return whole(x)

    vae.encode = encode
    begun, said = partial(cached_moments, vae, data, torch.arange(20), folder, torch.device("cpu")), ""
    with mock.patch.object(latents, "MOST_ENCODED", 4):
        try:
            moments = in_one_piece("LDM", begun, "goes on")[:]
        except Stopped as stopped:
            said, moments = str(stopped), None
    return {"encoded": sum(counts), "moments": moments, "said": said}


def refusal() -> str:
    """The sentence that this process gets when the first one meets bad input."""
    def refuse() -> None:
        raise UserError(f"process {processes.rank()} says no")

    try:
        processes.on_main(refuse)
    except UserError as error:
        return str(error)
    return ""


def apart(folder: Path) -> list[str]:
    """The sentences that this process gets where the two see different folders by the same names."""
    said = []
    for what in ("step", "pixels", "users", "config"):
        own = folder / f"apart/{what}/{processes.rank()}"
        shutil.copytree(folder / "data", own / "data")
        if processes.rank() == 0 and what == "step":
            shutil.copytree(folder / "from_2_to_1", own / "run")
        if processes.rank() == 1 and what == "pixels":
            Image.new("RGB", (16, 16)).save(next((own / "data").glob("*/*.png")))
        if processes.rank() == 1 and what == "users":
            next((own / "data").iterdir()).rename(own / "data/renamed")
        more = ["save_interval=5"] if processes.rank() == 1 and what == "config" else []
        arguments = ldm_flags(folder, "run", "shard_optimizer=true", *more)
        arguments[arguments.index("--data_dir") + 1] = "data"
        arguments[arguments.index("--output_dir") + 1] = "run"
        with contextlib.chdir(own):
            try:
                ldm.main(arguments)
            except UserError as error:
                said.append(str(error))
    return said


def flags(folder: Path, out: str, *more: str) -> list[str]:
    return ["--config", str(PATH), "--data_dir", str(folder / "data"), "--output_dir", str(folder / out), *more]


def ldm_flags(folder: Path, out: str, *more: str) -> list[str]:
    """Batches of 5 of 15 images, in micro-batches of 2, and checkpoints after 4 and 6 steps of 6."""
    settings = ["batch_size=1", "gradient_accumulation_steps=5", "save_interval=4", *more]
    path = ["--vae_path", str(folder / "v/final_model")]
    return flags(folder, out, *path, *(x for s in settings for x in ("--set", f"ldm_training.{s}")))


def vae_flags(folder: Path, out: str) -> list[str]:
    """With an adversary from the third step on; batches of 4 of 15 images, so that the last has 3."""
    settings = ["vae_loss.adversarial_weight=0.5", "vae_loss.adversarial_start=2"]
    return flags(folder, out, "--resolution", "32", *(x for s in settings for x in ("--set", s)))


def adversarial_run(folder: Path, out: str) -> None:
    """In float64: the bias of attention's keys has no effect, so its gradient is rounding, which AdamW makes large."""
    with float64():
        vae.main(vae_flags(folder, out))


class Ended(Exception):
    pass


def before_each_step(call: Callable[[], None]):
    """While entered, each process calls it before every step of a training."""
    whole = Trainer.rows_of

    def rows_of(self: Trainer, step: int) -> torch.Tensor:
        call()
        return whole(self, step)

    return mock.patch.object(Trainer, "rows_of", rows_of)


def stopped_run(arguments: list[str]) -> None:
    """An LDM run that ends after its first checkpoint of a step."""
    saved: list = []

    def save(folder: Path, step: int, *args) -> None:
        save_checkpoint(folder, step, *args)
        if step > 0:
            saved.append(step)

    def end() -> None:
        if any(processes.gather(bool(saved))):
            raise Ended

    with mock.patch.object(trainer, "save_checkpoint", save), before_each_step(end):
        try:
            ldm.main(arguments)
        except Ended:
            return
    raise AssertionError("the run was not ended")


def signalled_run(arguments: list[str]) -> str:
    """How an LDM run ends whose second process is asked to stop in the second step."""
    begun: list[int] = []

    def ask() -> None:
        begun.append(1)
        if len(begun) == 2 and processes.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    with before_each_step(ask):
        try:
            ldm.main(arguments)
        except Stopped as stopped:
            return str(stopped)
    return ""


def watch_writing(folder: Path) -> list[str]:
    """A list that grows by what this process opens for writing, makes or renames in the folder."""
    written: list[str] = []

    def watch(event: str, args: tuple) -> None:
        writes = event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        changes = writes or event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir")
        if changes and str(args[0]).startswith(str(folder)):
            written.append(f"{event} {args[0]}")

    sys.addaudithook(watch)
    return written


def all_laws(folder: Path) -> None:
    written = watch_writing(folder)
    adversarial_run(folder, "adversary_2")
    ldm.main(ldm_flags(folder, "ldm_2", "shard_optimizer=true"))
    stopped_run(ldm_flags(folder, "from_2_to_1", "shard_optimizer=true"))
    ldm.main(ldm_flags(folder, "from_1_to_2", "shard_optimizer=true"))
    found = {
        "stopped": signalled_run(ldm_flags(folder, "signalled")),
        "written": list(written),
        "uneven": learn(20, 7, 2),
        "tokens": learn(20, 7, 2, tokens=2),
        "empty": learn(5, 4, 4),
        "tokens, all kept": learn(20, 7, 2, tokens=2, lean=False),
        "sharded": learn(20, 7, 2, shard=True),
        "out_of_memory": learn(20, 7, 2, take=take_short_of_memory),
        "communication": {micro: communication(micro) for micro in (1, 7)},
        "gradients": gradients(),
        "order": order(),
        "overflow": [overflow(row) for row in (0, 6)],
        "sharding": sharding(),
        "encoded": [encoded(folder / "encoded"), encoded(folder / "interrupted", 2), encoded(folder / "interrupted")],
        "refusal": refusal(),
        "apart": apart(folder),
        "gathered": processes.gather(processes.rank()),
    }
    found["hash"] = tensors_hash(found["uneven"]["weights"].values())
    torch.save(found, folder.with_name(f"rank{processes.rank()}.pt"))
    short_of_buckets()


def short_of_buckets() -> None:
    """The second process runs out of memory after its first step has changed the weights, where the other has not."""
    whole = step.make_buckets

    def make_buckets(ddp) -> None:
        if processes.rank() == 1:
            raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
        whole(ddp)

    with mock.patch.object(step, "make_buckets", make_buckets):
        Denoising(14, 7, 2).step(0)
    processes.wait_for_all()


def dying_run(folder: Path) -> None:
    """The second process is killed in the fifth step, after the checkpoint of the fourth."""
    def die() -> None:
        if processes.rank() == 1 and (folder / "dying/checkpoints/step_00000004").exists():
            os.kill(os.getpid(), signal.SIGKILL)

    with before_each_step(die):
        ldm.main(ldm_flags(folder, "dying"))


def main(argv: list[str] | None = None) -> None:
    {"laws": all_laws, "death": dying_run}[sys.argv[1]](Path(sys.argv[2]))


if __name__ == "__main__":
    cli.run(main)
