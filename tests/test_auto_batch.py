"""A step that runs out of memory is taken again in smaller pieces, and is the same step."""

import itertools
import json
import weakref
from functools import partial

import pytest
import torch

from nets.discriminator import PatchDiscriminator
from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from tests.test_step import Problem, scaler
from tests.tiny import PATH, make_images
from train import ldm, vae
from train.base.errors import UserError
from train.engine.micro_batch import MicroBatch
from train.engine.optim import OptimConfig, learning_rate, make_adamw, set_learning_rate
from train.engine.step import optimizer_step
from train.engine.trainer import TrainingConfig
from train.runs import model_folder as pretrained

FALLING = OptimConfig(learning_rate=0.01, warmup_steps=2)


def fit(auto=True, fails=None, micro_batch=6, steps=4, where="forward", saved=None):
    """Steps of a problem in which attempt `fails(attempt, images)` runs out of memory; the weights at the end."""
    problem = Problem(6)
    optimizer, one = make_adamw(problem.parameters(), FALLING), scaler(init_scale=8.0)
    config = TrainingConfig("x", num_epochs=1, batch_size=micro_batch, gradient_accumulation_steps=6 // micro_batch,
                            auto_batch=auto)  # fmt: skip
    micro, calls = MicroBatch(config, micro_batch), itertools.count()
    if saved:
        micro.load_state_dict(saved)

    def losses(rows: slice) -> dict[str, torch.Tensor]:
        loss, call = problem.losses(rows)["loss"], next(calls)

        def full(*_):
            if fails and fails(call, len(loss)):
                raise torch.OutOfMemoryError("injected")

        full() if where == "forward" else loss.register_hook(full)
        return {"loss": loss}

    for number in range(steps):
        set_learning_rate(optimizer, learning_rate(FALLING, number, steps))
        result = micro.fitting(lambda size: optimizer_step(
            losses, 6, size, problem.parameters(), optimizer, one, partial(torch.autocast, "cpu", enabled=False), 1.0
        ))  # fmt: skip
        assert result.taken
    assert one.get_scale() == 8.0
    return problem.weights(), micro


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(("largest", "call"), [(3, 0), (3, 2), (1, 0), (1, 3)])
def test_a_run_that_ran_out_of_memory_equals_one_that_did_not(capsys, largest, call, where):
    """From micro-batch `call` on, no more than `largest` images fit."""
    plain, _ = fit()
    weights, micro = fit(fails=lambda at, images: at >= call and images > largest, where=where)
    assert micro.size == largest
    assert (weights - plain).norm() <= 1e-5 * plain.norm()
    if call == 0:  # then all of it went through in that size: the very same sums
        assert torch.equal(weights, fit(micro_batch=largest)[0])
    said = capsys.readouterr().err.splitlines()
    sizes = [6, 3, 2, 1] if largest == 1 else [6, 3]
    for line, was, now in zip(said, sizes, sizes[1:], strict=False):
        assert f"{now} images at once from here on, not {was}" in line
    assert len(said) == len(sizes) - 1  # once for each size, and not in every step


def test_memory_that_ends_in_a_later_micro_batch_leaves_nothing_of_the_earlier_ones():
    """The second of two micro-batches fails in the first window: the gradient of the first must be forgotten."""
    weights, micro = fit(fails=lambda at, images: at == 1, micro_batch=3)
    assert micro.size == 2
    assert torch.equal(weights, fit(micro_batch=2)[0])


def test_a_single_image_that_does_not_fit_ends_in_a_sentence_with_advice():
    with pytest.raises(UserError, match=r"out of memory with a single image .*gradient_checkpointing"):
        fit(fails=lambda *_: True)


def test_without_auto_batch_memory_that_ends_stops_with_what_to_change():
    with pytest.raises(UserError, match=r"out of memory with a batch_size of 6; start again with auto_batch true"):
        fit(auto=False, fails=lambda *_: True)


def test_the_micro_batch_that_was_found_is_kept_when_the_run_goes_on():
    _, micro = fit(fails=lambda at, images: images > 3)
    calls = []
    _, resumed = fit(fails=lambda at, images: calls.append(images), saved=micro.state_dict())
    assert resumed.size == 3
    assert set(calls) == {3}
    _, chosen = fit(auto=False, saved=micro.state_dict())
    assert chosen.size == 6  # without auto_batch the config decides


def test_what_a_failed_attempt_computed_is_freed_before_the_next():
    alive = weakref.WeakSet()

    def attempt(size: int) -> int:
        before = len(alive)
        computed = torch.zeros(size)
        alive.add(computed)
        if size == 4:
            raise torch.OutOfMemoryError("injected")
        return before

    config = TrainingConfig("x", num_epochs=1, batch_size=4, auto_batch=True)
    assert MicroBatch(config, 4).fitting(attempt) == 0


# ---- the trainings


ADVERSARY = ["--set", "vae_loss.adversarial_weight=0.5", "--set", "vae_loss.adversarial_start=1", "--resolution", "32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(autouse=True)
def _small_discriminators(monkeypatch):
    monkeypatch.setattr("train.vae_loss.PatchDiscriminator", partial(PatchDiscriminator, channels=4))


def flags(data, out, *more) -> list[str]:
    return ["--config", str(PATH), "--data_dir", str(data), "--output_dir", str(out), *more]


def cut(micro_batch, accumulation) -> list[str]:
    return ["--batch_size", str(micro_batch), "--gradient_accumulation_steps", str(accumulation)]


@pytest.fixture
def card(monkeypatch):
    """A card on which `method` of a model runs out of memory for more than two images with gradients, from its
    call number `start` on."""

    def of(model: type, method: str, start: int = 0, learning=lambda model: True) -> None:
        whole, calls = getattr(model, method), itertools.count()

        def full(self, x, *args):
            if torch.is_grad_enabled() and not x.is_meta and learning(self) and next(calls) >= start and len(x) > 2:
                raise torch.OutOfMemoryError("injected")
            return whole(self, x, *args)

        monkeypatch.setattr(model, method, full)

    return of


def distance(a, b) -> float:
    ours, theirs = (pretrained.load(folder).state_dict() for folder in (a, b))
    error = sum((ours[name] - theirs[name]).square().sum() for name in theirs)
    return float((error / sum(x.square().sum() for x in theirs.values())).sqrt())


@pytest.mark.parametrize(
    ("where", "start"),
    [((AutoencoderKL, "decode"), 0), ((AutoencoderKL, "decode"), 3), ((PatchDiscriminator, "forward"), 0)],
    ids=["at once", "in the second half of the second step", "in the discriminator's step"],
)
def test_a_vae_with_discriminator_that_runs_out_of_memory_ends_as_one_that_does_not(
    data, tmp_path, card, capsys, where, start
):
    vae.main(flags(data, tmp_path / "plain", *cut(4, 2), *ADVERSARY))
    vae.main(flags(data, tmp_path / "cut", *cut(2, 4), *ADVERSARY))
    card(*where, start, learning=lambda model: next(model.parameters()).requires_grad)
    vae.main(flags(data, tmp_path / "auto", *cut(4, 2), *ADVERSARY, "--set", "vae_training.auto_batch=true"))
    assert capsys.readouterr().err.count("out of memory: 2 images at once from here on, not 4") == 1
    assert distance(tmp_path / "auto/final_model", tmp_path / "plain/final_model") < 1e-5
    if start == 0 and where[0] is AutoencoderKL:
        assert distance(tmp_path / "auto/final_model", tmp_path / "cut/final_model") == 0


def test_an_ldm_that_runs_out_of_memory_ends_as_one_that_does_not(data, tmp_path, card, capsys):
    vae.main(flags(data, tmp_path / "v"))
    path = ["--vae_path", str(tmp_path / "v/final_model")]
    ldm.main(flags(data, tmp_path / "plain", *cut(4, 1), *path))
    card(UNet2DConditionModel, "forward", 2)
    ldm.main(flags(data, tmp_path / "auto", *cut(4, 1), *path, "--set", "ldm_training.auto_batch=true"))
    assert capsys.readouterr().err.count("out of memory: 2 images at once from here on, not 4") == 1
    assert distance(tmp_path / "auto/final_model/unet", tmp_path / "plain/final_model/unet") < 1e-5
    with pytest.raises(UserError, match="start again with auto_batch true"):
        ldm.main(flags(data, tmp_path / "stopped", *cut(4, 1), *path))


def test_a_validation_that_runs_out_of_memory_goes_on_with_fewer_images_at_once(data, tmp_path, monkeypatch, capsys):
    vae.main(flags(data, tmp_path / "v"))
    run = ["--vae_path", str(tmp_path / "v/final_model"), *cut(4, 1), "--set", "ldm_training.auto_batch=true"]
    ldm.main(flags(data, tmp_path / "plain", *run))
    whole = ldm.denoising_loss

    def full(model, schedule, config, latents, *more):
        if not torch.is_grad_enabled() and len(latents) > 2:
            raise torch.OutOfMemoryError("injected")
        return whole(model, schedule, config, latents, *more)

    monkeypatch.setattr(ldm, "denoising_loss", full)
    ldm.main(flags(data, tmp_path / "auto", *run))
    assert capsys.readouterr().err.count("out of memory: 2 images at once from here on, not 4") == 1
    ours, theirs = (validation_losses(tmp_path / name) for name in ("auto", "plain"))
    assert ours
    assert ours == pytest.approx(theirs, rel=1e-5)


def validation_losses(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["validation_loss"] for line in lines if "validation_loss" in line]
