"""What tests/test_parallel.py runs, in one process by calling it and in two by torchrun; the laws are over there."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.profiler import record_function

from diffusion.schedule import make_schedule
from nets.checkpointing import set_checkpointing
from tests.tiny import tiny, tiny_denoiser
from train import ldm, vae
from train.base import processes as parallel
from train.base.errors import UserError
from train.base.files import tensors_hash
from train.base.randomness import generator, window_rows
from train.config import cli
from train.engine import stopping
from train.engine import trainer as loop
from train.engine.device import autocast, grad_scaler
from train.engine.micro_batch import MicroBatch
from train.engine.optim import OptimConfig, make_adamw
from train.engine.step import StepResult, optimizer_step
from train.runs.checkpoint import save_checkpoint
from train.stages.denoising import denoising_loss, draw_training_window

CPU = torch.device("cpu")
OPTIM = OptimConfig(learning_rate=1e-3, warmup_steps=0, lr_schedule="constant")
TINY = str(Path(__file__).with_name("tiny.yaml"))


class Denoising:
    """A small LDM that learns, in windows, from `samples` latents."""

    def __init__(self, samples: int, window: int, micro_batch: int, shard: bool = False, tokens: int = 1):
        self.samples, self.window, self.micro_batch = samples, window, micro_batch
        self.config = tiny(f"user_encoder.tokens_per_user={tokens}", "ldm_loss.condition_dropout=0.3")
        self.model = tiny_denoiser(self.config).train()
        set_checkpointing(self.model, shard)  # configs/sd.yaml has both
        self.latents = torch.randn(samples, 4, 8, 8, generator=generator(0, "images"))
        self.schedule = make_schedule(self.config.schedule)
        self.optimizer = make_adamw(self.model.trained_parameters(), OPTIM, shard)
        self.everyone = parallel.add_gradients(self.model.trained_parameters())
        self.scaler = grad_scaler(CPU, "no")

    def step(self, number: int, bad_row: int | None = None) -> StepResult:
        """The loss of the window's row `bad_row` is infinite."""
        rows = window_rows(0, number, self.samples, self.window)
        draws = draw_training_window(
            self.latents[rows].shape, 1000, self.config.ldm_loss.condition_dropout, self.model.user_encoder,
            generator(0, "draws", number), CPU,
        )  # fmt: skip

        def losses(part: slice) -> dict[str, torch.Tensor]:
            with record_function("micro-batch"):
                latents, users = self.latents[rows[part]], rows[part] % 3
                loss = denoising_loss(self.model, self.schedule, self.config.ldm_loss, latents, users, draws[part])
                if bad_row in range(part.start, part.stop):
                    loss = loss * float("inf")
                return {"loss": loss, "rows": torch.ones(len(loss))}

        return optimizer_step(
            losses, len(rows), self.micro_batch, self.model.trained_parameters(), self.optimizer, self.scaler,
            lambda: autocast(CPU, "no"), 1.0, self.everyone,
        )  # fmt: skip

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: weight.clone() for name, weight in self.model.state_dict().items()}


def learn(*args, steps: int = 8, **options) -> dict:
    """Weights, losses and norms after some steps."""
    run = Denoising(*args, **options)
    results = [run.step(number) for number in range(steps)]
    return {
        "weights": run.weights(),
        "losses": [result.losses["loss"] for result in results],
        "norms": [result.grad_norm for result in results],
    }


def learn_short_of_memory(*args) -> dict:
    """The same, where the second process runs out of memory once in every window's last micro-batch."""
    steps, room = optimizer_step, MicroBatch(replace(tiny().ldm_training, auto_batch=True), args[-1])

    def tried_again(losses: parallel.Losses, window: int, micro_batch: int, *more) -> StepResult:
        attempts = []

        def short(rows: slice) -> dict[str, torch.Tensor]:
            if len(attempts) == 1 and rows.stop == window:
                attempts.append("failed")
                raise torch.OutOfMemoryError("injected")
            return losses(rows)

        def attempt(size: int) -> StepResult:
            attempts.append("begun")
            return steps(short, window, size, *more)

        room.size = micro_batch
        result = room.fitting(attempt)
        assert attempts == (["begun", "failed", "begun"] if parallel.rank() == 1 else ["begun"])
        return result

    globals()["optimizer_step"] = tried_again
    try:
        return learn(*args)
    finally:
        globals()["optimizer_step"] = steps


def communication(micro_batch: int) -> list[str]:
    """What a step does, in the order of time: "micro-batch", and the names of collective operations."""
    run = Denoising(14, 7, micro_batch)
    run.step(0)  # which ends with arranging the gradients in buckets, once for all
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
    """An overflow of fp16 in one row of a window, then a window without one; then one in fp32."""
    run = Denoising(14, 7, 2)
    run.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    run.step(0)
    before = run.weights()
    bad = run.step(1, bad_row)
    unchanged = all(torch.equal(before[name], weight) for name, weight in run.weights().items())
    scale, good = run.scaler.get_scale(), run.step(1)
    run.scaler = grad_scaler(CPU, "no")
    try:
        run.step(2, bad_row)
        sentence = ""
    except UserError as error:
        sentence = str(error)
    return {"taken": (bad.taken, good.taken), "unchanged": unchanged, "scale": scale, "sentence": sentence}


def sharding() -> dict:
    """How many numbers of the optimizer's state this process has, and the state that a checkpoint would hold."""
    run = Denoising(14, 7, 7, shard=True)
    run.step(0)
    optimizer = getattr(run.optimizer, "optim", run.optimizer)
    own = sum(value.numel() for state in optimizer.state.values() for value in state.values() if value.dim())
    return {"own": own, "saved": run.optimizer.state_dict()}


def refusal() -> str:
    """The sentence that this process gets when the first one meets bad input."""
    def refuse() -> None:
        raise UserError(f"process {parallel.rank()} says no")

    try:
        parallel.on_main(refuse)
    except UserError as error:
        return str(error)
    return ""


def flags(folder: Path, out: str, *more: str) -> list[str]:
    return ["--config", TINY, "--data_dir", str(folder / "data"), "--output_dir", str(folder / out), *more]


def ldm_flags(folder: Path, out: str, *more: str) -> list[str]:
    """Windows of 5 of 15 images, in micro-batches of 2, and checkpoints after 4 and 6 steps of 6."""
    settings = ["batch_size=1", "gradient_accumulation_steps=5", "save_interval=4", *more]
    path = ["--vae_path", str(folder / "v/final_model")]
    return flags(folder, out, *path, *(x for s in settings for x in ("--set", f"ldm_training.{s}")))


def vae_flags(folder: Path, out: str) -> list[str]:
    """With an adversary from the third step on; windows of 4 of 15 images, so that the last has 3."""
    settings = ["vae_loss.adversarial_weight=0.5", "vae_loss.adversarial_start=2"]
    return flags(folder, out, "--resolution", "32", *(x for s in settings for x in ("--set", s)))


class Stopped(Exception):
    pass


def stopped_run(arguments: list[str]) -> None:
    """An LDM run that stops after its first checkpoint."""

    def save_and_stop(*args) -> None:
        save_checkpoint(*args)
        saved.append(args)

    saved: list = []
    steps = ldm.optimizer_step

    def step_or_stop(*args) -> StepResult:
        if any(parallel.gather(bool(saved))):
            raise Stopped
        return steps(*args)

    loop.save_checkpoint, ldm.optimizer_step = save_and_stop, step_or_stop
    try:
        ldm.main(arguments)
    except Stopped:
        return
    finally:
        loop.save_checkpoint, ldm.optimizer_step = save_checkpoint, steps


def signalled_run(arguments: list[str]) -> str:
    """How an LDM run ends whose second process is asked to stop in the second step."""
    steps, taken = ldm.optimizer_step, []

    def step_and_ask(*args) -> StepResult:
        taken.append(1)
        if len(taken) == 2 and parallel.rank() == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return steps(*args)

    ldm.optimizer_step = step_and_ask
    try:
        ldm.main(arguments)
    except stopping.Stopped as stopped:
        return str(stopped)
    finally:
        ldm.optimizer_step = steps
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
    vae.main(vae_flags(folder, "adversary_2"))
    ldm.main(ldm_flags(folder, "ldm_2", "shard_optimizer=true"))
    stopped_run(ldm_flags(folder, "from_2_to_1", "shard_optimizer=true"))
    ldm.main(ldm_flags(folder, "from_1_to_2", "shard_optimizer=true"))
    found = {
        "stopped": signalled_run(ldm_flags(folder, "signalled")),
        "written": list(written),
        "uneven": learn(20, 7, 2),
        "tokens": learn(20, 7, 2, tokens=2),
        "empty": learn(5, 4, 4),
        "sharded": learn(20, 7, 2, shard=True),
        "out_of_memory": learn_short_of_memory(20, 7, 2),
        "communication": {micro: communication(micro) for micro in (1, 7)},
        "gradients": gradients(),
        "order": order(),
        "overflow": [overflow(row) for row in (0, 6)],
        "sharding": sharding(),
        "refusal": refusal(),
        "gathered": parallel.gather(parallel.rank()),
    }
    found["hash"] = tensors_hash(found["uneven"]["weights"].values())
    torch.save(found, folder.with_name(f"rank{parallel.rank()}.pt"))
    parallel.gather(None)
    if parallel.rank() == 1:  # while the other waits for it
        raise UserError("process 1 has had enough")
    parallel.gather(None)


def dying_run(folder: Path) -> None:
    """The second process is killed in the fifth step, after the checkpoint of the fourth."""
    steps = ldm.optimizer_step

    def step_or_die(*args) -> StepResult:
        if parallel.rank() == 1 and (folder / "dying/checkpoints/step_00000004").exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return steps(*args)

    ldm.optimizer_step = step_or_die
    ldm.main(ldm_flags(folder, "dying"))


def main(argv: list[str] | None = None) -> None:
    torch.set_num_threads(1)
    {"laws": all_laws, "death": dying_run}[sys.argv[1]](Path(sys.argv[2]))


if __name__ == "__main__":
    cli.run(main)
