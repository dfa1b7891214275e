"""A step that runs out of memory is taken again in smaller pieces, and is the same step."""

import itertools
import json
import weakref
from functools import partial

import pytest
import torch
from torch import nn

from nets.discriminator import PatchDiscriminator
from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from tests.engine.problem import Problem, adamw_learner, scaler
from tests.float64 import float64
from tests.tiny import PATH, make_images
from train import ldm, vae
from train.base.errors import UserError
from train.config.sections import OptimConfig, TrainingConfig
from train.engine.micro_batch import MicroBatch
from train.engine.optim import learning_rate
from train.engine.step import mean_losses
from train.runs import model_folder as pretrained
from train.stages.ldm import LDMStage

FALLING = OptimConfig(learning_rate=0.01, warmup_steps=2)


def fit(auto=True, fails=None, micro_batch=6, steps=4, where="forward", saved=None):
    """Steps of a problem in which attempt `fails(attempt, images)` runs out of memory; the weights at the end."""
    problem = Problem(6)
    learner = adamw_learner(problem, FALLING, scaler(init_scale=8.0), max_grad_norm=1.0)
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
        learner.set_learning_rate(learning_rate(FALLING, number, steps))
        while (totals := micro.attempt(learner.accumulate, losses, 6, micro.size)) is None or (
            grad_norm := micro.attempt(learner.clip)
        ) is None:
            micro.halve()
        assert learner.step(mean_losses(totals)["loss"], grad_norm)
    assert learner.scaler.get_scale() == 8.0
    return problem.weights(), micro


@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize(("largest", "call"), [(3, 0), (3, 2), (1, 0), (1, 3)])
def test_a_run_that_ran_out_of_memory_equals_one_that_did_not(capsys, largest, call, where):
    """From micro-batch `call` on, no more than `largest` images fit."""
    plain, _ = fit()
    weights, micro = fit(fails=lambda at, images: at >= call and images > largest, where=where)
    assert micro.size == largest
    # Four steps move the weights by some percent; sums in another order change that by a thousandth at the very most.
    assert (weights - plain).norm() <= 1e-5 * plain.norm()
    if call == 0:  # then all of it went through in that size: the very same sums
        assert torch.equal(weights, fit(micro_batch=largest)[0])
    said = capsys.readouterr().err.splitlines()
    sizes = [6, 3, 2, 1] if largest == 1 else [6, 3]
    for line, was, now in zip(said, sizes, sizes[1:], strict=False):
        assert f"{now} images at once from here on, not {was}" in line
    assert len(said) == len(sizes) - 1  # once for each size, and not in every step


def test_out_of_memory_forgets_the_earlier_micro_batches():
    """The second of two micro-batches fails in the first batch: the gradient of the first must be forgotten."""
    weights, micro = fit(fails=lambda at, images: at == 1, micro_batch=3)
    assert micro.size == 2
    assert torch.equal(weights, fit(micro_batch=2)[0])


def test_a_single_image_that_does_not_fit_is_refused_with_advice():
    with pytest.raises(UserError, match="out of memory with a single image"):
        fit(fails=lambda *_: True)


def test_without_auto_batch_out_of_memory_stops_with_advice():
    with pytest.raises(UserError, match="start again with auto_batch true"):
        fit(auto=False, fails=lambda *_: True)


def test_a_resumed_run_keeps_the_micro_batch_that_was_found():
    _, micro = fit(fails=lambda at, images: images > 3)
    calls = []
    _, resumed = fit(fails=lambda at, images: calls.append(images), saved=micro.state_dict())
    assert resumed.size == 3
    assert set(calls) == {3}
    _, chosen = fit(auto=False, saved=micro.state_dict())
    assert chosen.size == 6  # without auto_batch the config decides


@pytest.mark.parametrize("auto", [False, True])
def test_halving_rounds_up_and_ends_in_a_sentence(capsys, auto):
    config = TrainingConfig("x", num_epochs=1, batch_size=7, gradient_accumulation_steps=2, auto_batch=auto)
    micro = MicroBatch(config, 7)
    for size in (4, 2, 1) if auto else ():
        micro.halve()
        assert micro.size == size
    with pytest.raises(UserError, match="single image" if auto else "batch_size of 7"):
        micro.halve()
    said = capsys.readouterr().err
    for pieces in (4, 7, 14) if auto else ():
        assert f"in {pieces} micro-batches; a step is still of 14 images" in said


@pytest.mark.parametrize("where", ["before", "halfway", "after"])
@pytest.mark.parametrize("step", [0, 2])
def test_memory_that_runs_out_in_clipping_is_replayed(monkeypatch, where, step):
    """Before the gradient is unscaled, where it is in part, or where all of it is."""
    weights, micro = fit(micro_batch=3)
    whole, calls = torch.amp.GradScaler._unscale_grads_, itertools.count()

    def full(self, optimizer, scale, *args):
        if next(calls) != step:
            return whole(self, optimizer, scale, *args)
        if where == "halfway":
            optimizer.param_groups[0]["params"][0].grad.mul_(scale)
        elif where == "after":
            whole(self, optimizer, scale, *args)
        raise torch.OutOfMemoryError("injected")

    monkeypatch.setattr(torch.amp.GradScaler, "_unscale_grads_", full)
    replayed, micro = fit(micro_batch=6)
    assert micro.size == 3
    if step == 0:
        assert torch.equal(replayed, weights)
    assert (replayed - weights).norm() <= 1e-5 * weights.norm()


def test_memory_that_runs_out_for_the_norm_is_replayed(monkeypatch):
    weights, _ = fit(micro_batch=3)
    whole, calls = nn.utils.clip_grad_norm_, itertools.count()

    def full(*args):
        if next(calls) == 0:
            raise torch.OutOfMemoryError("injected")
        return whole(*args)

    monkeypatch.setattr(nn.utils, "clip_grad_norm_", full)
    assert torch.equal(fit(micro_batch=6)[0], weights)


def test_what_a_failed_attempt_computed_is_freed_before_the_next(monkeypatch):
    alive, returned = weakref.WeakSet(), []
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: returned.append(len(alive)))
    micro = MicroBatch(TrainingConfig("x", num_epochs=1, batch_size=4), 4)

    def attempt(size: int) -> int:
        before = len(alive)
        computed = torch.zeros(size)
        alive.add(computed)
        if size == 4:
            raise torch.OutOfMemoryError("injected")
        return before

    assert micro.attempt(attempt, 4) is None
    assert returned == [0]  # free when the cache is emptied, which gives it back to the GPU
    assert micro.attempt(attempt, 2) == 0


def test_only_memory_that_runs_out_is_tried_again_and_its_words_told(capsys):
    micro = MicroBatch(TrainingConfig("x", num_epochs=1, batch_size=4, auto_batch=True), 4)

    def fails(error: Exception):
        raise error

    for error in (RuntimeError("no"), UserError("no"), ZeroDivisionError("no"), RuntimeError("CUDA error: no")):
        with pytest.raises(type(error)):
            micro.attempt(fails, error)
    words = "cuDNN error: CUDNN_STATUS_ALLOC_FAILED"
    for error in (torch.OutOfMemoryError("no"), MemoryError(), RuntimeError(f"{words}\nand more")):
        assert micro.attempt(fails, error) is None
    micro.halve()
    assert capsys.readouterr().err.endswith(f"this one is taken again (out of memory: {words})\n")
    micro.halve()
    with pytest.raises(UserError, match=rf"a single image at once; .* \(out of memory: {words}\)$"):
        micro.halve()


# ---- the trainings


ADVERSARY = ["--set", "vae_loss.adversarial_weight=0.5", "--set", "vae_loss.adversarial_start=1", "--resolution", "32"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_images(tmp_path_factory.mktemp("images") / "data")


@pytest.fixture(autouse=True)
def _small_discriminators(monkeypatch):
    monkeypatch.setattr("train.stages.adversary.PatchDiscriminator", partial(PatchDiscriminator, channels=4))


def flags(data, out, *more) -> list[str]:
    return ["--config", str(PATH), "--data_dir", str(data), "--output_dir", str(out), *more]


def cut(micro_batch, accumulation) -> list[str]:
    return ["--batch_size", str(micro_batch), "--gradient_accumulation_steps", str(accumulation)]


@pytest.fixture
def gpu(monkeypatch):
    """A GPU on which `method` of a model runs out of memory for more than two images with gradients, from its
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
@float64()
def test_out_of_memory_does_not_change_a_vae_with_discriminator(
    data, tmp_path, gpu, capsys, where, start
):
    vae.main(flags(data, tmp_path / "plain", *cut(4, 2), *ADVERSARY))
    vae.main(flags(data, tmp_path / "cut", *cut(2, 4), *ADVERSARY))
    gpu(*where, start, learning=lambda model: next(model.parameters()).requires_grad)
    vae.main(flags(data, tmp_path / "auto", *cut(4, 2), *ADVERSARY, "--set", "vae_training.auto_batch=true"))
    assert capsys.readouterr().err.count("out of memory: 2 images at once from here on, not 4") == 1
    assert distance(tmp_path / "auto/final_model", tmp_path / "plain/final_model") < 1e-9
    if start == 0 and where[0] is AutoencoderKL:
        assert distance(tmp_path / "auto/final_model", tmp_path / "cut/final_model") == 0


def test_out_of_memory_does_not_change_the_trained_ldm(data, tmp_path, gpu, capsys):
    vae.main(flags(data, tmp_path / "v"))
    path = ["--vae_path", str(tmp_path / "v/final_model")]
    ldm.main(flags(data, tmp_path / "plain", *cut(4, 1), *path))
    gpu(UNet2DConditionModel, "forward", 2)
    ldm.main(flags(data, tmp_path / "auto", *cut(4, 1), *path, "--set", "ldm_training.auto_batch=true"))
    assert capsys.readouterr().err.count("out of memory: 2 images at once from here on, not 4") == 1
    assert distance(tmp_path / "auto/final_model/unet", tmp_path / "plain/final_model/unet") < 1e-5
    with pytest.raises(UserError, match="start again with auto_batch true"):
        ldm.main(flags(data, tmp_path / "stopped", *cut(4, 1), *path))


def test_out_of_memory_in_validation_retries_with_fewer_images(data, tmp_path, monkeypatch, capsys):
    vae.main(flags(data, tmp_path / "v"))
    run = ["--vae_path", str(tmp_path / "v/final_model"), *cut(4, 1), "--set", "ldm_training.auto_batch=true"]
    ldm.main(flags(data, tmp_path / "plain", *run))
    whole = LDMStage.losses

    def full(stage, batch, part, model=None):
        if not torch.is_grad_enabled() and part.stop - part.start > 2:
            raise torch.OutOfMemoryError("injected")
        return whole(stage, batch, part, model)

    monkeypatch.setattr(LDMStage, "losses", full)
    ldm.main(flags(data, tmp_path / "auto", *run))
    assert capsys.readouterr().err.count("out of memory: 2 images at once from here on, not 4") == 1
    ours, theirs = (validation_losses(tmp_path / name) for name in ("auto", "plain"))
    assert ours
    assert ours == pytest.approx(theirs, rel=1e-5)


def validation_losses(folder) -> list[float]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["validation_loss"] for line in lines if "validation_loss" in line]
