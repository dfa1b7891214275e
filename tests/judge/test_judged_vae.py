"""What judges say of a VAE's reconstructions, and that they neither touch the training nor see what is held out."""

import json
from dataclasses import replace

import pytest
import torch

from tests.tiny import tiny, tiny_images, tiny_vae
from train.data.dataset import UserImages
from train.data.split import make_split
from train.engine.run import prepared
from train.judge.judged_vae import SHARE, JudgedVAEStage, TimeShare
from train.judge.kept import by_ridge, in_halves
from train.runs.checkpoint import load_latest
from train.stages.vae import VAEStage

CPU = torch.device("cpu")
PATTERN = ("data.recording_pattern=^(.)_",)
ACCURACIES = ["judge_on_real", "judge_on_reconstructions", "judge_of_reconstructions"]


def walkers(users: int = 4, recordings: int = 4, images: int = 8, side: int = 16) -> UserImages:
    """Noise with a stripe at a height and of a wavelength that tell whose it is, wherever it begins."""
    rng = torch.Generator().manual_seed(0)
    index = torch.arange(users).repeat_interleave(recordings * images)
    pixels = torch.randint(0, 60, (len(index), 3, side, side), generator=rng)
    begins = torch.randint(0, side, (len(index),), generator=rng)
    wave = torch.cos(2 * torch.pi * (index[:, None] % 4 + 1) * (torch.arange(side) + begins[:, None]) / side)
    for row, user in enumerate(index.tolist()):
        top = side * user // users
        pixels[row, :, top : top + max(1, side // users // 2)] += (90 + 90 * wave[row]).long()
    names = [f"ID{user}" for user in range(users)]
    paths = [f"{names[u]}/{r}_{i}.png" for u in range(users) for r in range(recordings) for i in range(images)]
    return UserImages(pixels.to(torch.uint8), index, names, paths)


class Painted(torch.nn.Module):
    """A VAE that decodes images, not latents, as `paint` says."""

    def __init__(self, paint):
        super().__init__()
        self.paint, self.config = paint, tiny().vae

    def encode(self, images):
        self.images = images
        self.mean = self.std = torch.ones(len(images), 4, 8, 8)
        return self

    def mode(self):
        return self.images

    def decode(self, images):
        return self.paint(images)


def identity(images):
    return images


def grey(images):
    return torch.zeros_like(images)


def stage(folder, data: UserImages | None = None, *settings: str) -> JudgedVAEStage:
    config = tiny(f"vae_training.output_dir={folder}", *PATTERN, *settings)
    data = data or walkers()
    made = JudgedVAEStage(config, data, tiny_vae(config), None)
    made.build(CPU, "no")
    made.split = make_split(data, config.data)
    made.begin(folder)
    return made


@pytest.fixture
def ended(monkeypatch, capsys, tmp_path):
    """What the end of a training prints, by stream, of a VAE that paints so."""
    monkeypatch.setattr("train.judge.judged_vae.announce", lambda seconds: None)  # that differs from call to call
    monkeypatch.setattr("train.runs.final_model.save_vae", lambda *_: None)
    monkeypatch.setattr("train.stages.vae.measure_scaling", lambda *_: {"scaling_factor": 1.0, "images": 1})

    def end(paint, data: UserImages | None = None) -> tuple[str, str]:
        summary = stage(tmp_path, data).export(Painted(paint))
        assert summary.startswith("VAE: validation PSNR")
        return tuple(capsys.readouterr())

    return end


# ---- what they say at the end


def test_an_identity_keeps_all_that_judges_see(ended):
    said, warned = ended(identity)
    for judge in ("a network", "ridge regression"):
        assert f"{judge} recognises 100.0% of real images, 100.0% of reconstructions, and 100.0% of real" in said
    assert "warning" not in warned


def test_grey_reconstructions_keep_nothing_and_the_end_warns(ended):
    said, warned = ended(grey)
    assert "ridge regression recognises 100.0% of real images, 25.0% of reconstructions, and 25.0% of real" in said
    assert warned.count("warning") == 1
    for words in ("a network recognises", "ridge regression recognises", "vae.latent_channels (now 4)",
                  "vae.channels (now [8, 16])", "vae_training.num_epochs (now 2)"):  # fmt: skip
        assert words in warned


def test_the_warning_names_the_length_that_the_config_speaks_of(tmp_path):
    said = stage(tmp_path, None, "vae_training.num_steps=9").too_little([])
    assert said.endswith("or raise vae_training.num_steps (now 9)")


def test_judges_at_chance_say_that_they_cannot_tell(ended):
    data = walkers()
    rng = torch.Generator().manual_seed(1)
    noise = torch.randint(0, 256, data.images.shape, generator=rng, dtype=torch.uint8)
    said, warned = ended(grey, replace(data, images=noise))
    assert said.count("cannot tell: it recognises") == 2
    assert said.count("chance 25.0%") == 2
    assert "warning" not in warned


def test_what_has_been_judged_is_said_again_without_judges(ended, monkeypatch):
    said, warned = ended(grey)
    asked = []

    def ask(halves, decoded, *_):
        asked.append("network")
        return by_ridge(halves, decoded)

    monkeypatch.setattr("train.judge.judged_vae.by_network", ask)
    again, warned_again = ended(grey)
    assert (again, asked) == (said, [])
    assert warned_again.splitlines()[-1] == warned.splitlines()[-1]
    ended(identity)  # another VAE
    assert asked == ["network"]


def test_a_judgement_that_somebody_altered_is_made_again(ended, tmp_path):
    said, warned = ended(grey)
    kept = json.loads((tmp_path / "judged.json").read_text())
    del kept["ridge regression"]["says"]
    (tmp_path / "judged.json").write_text(json.dumps(kept))
    again, warned_again = ended(grey)
    assert (again, warned_again.splitlines()[-1]) == (said, warned.splitlines()[-1])
    assert warned_again.startswith(
        f"passed over: {tmp_path / 'judged.json'}: is not as it was written; what it kept is made again\n"
    )


def test_what_is_held_out_is_never_looked_at(ended, tmp_path):
    data = walkers()
    repainted = data.images.clone()
    repainted[stage(tmp_path, data).split.held_out] = 255

    def blur(images):
        return torch.nn.functional.avg_pool2d(images, 9, 1, 4)

    assert ended(blur, data)[0] == ended(blur, replace(data, images=repainted))[0]


@pytest.mark.parametrize(
    "data",
    [walkers(2, 2, 1), walkers(1, 4, 40), walkers(60, 1, 1), tiny_images()],
    ids=["two images", "one user", "one image of each user", "few images"],
)
def test_sets_too_small_to_judge_are_told_so(data):
    assert in_halves(data, torch.arange(len(data)), tiny().data) is None


def test_users_of_two_images_each_are_judged(ended):
    data = walkers(30, 3, 1, side=32)
    said, _ = ended(identity, data)
    assert "one half of 60 images" in said


# ---- the halves


def test_each_half_has_recordings_of_its_own_of_every_user():
    data, config = walkers(3, 5, 4), tiny(*PATTERN).data
    halves = in_halves(data, torch.arange(len(data)), config)
    for user in range(3):
        own = halves.real.users == user
        first, second = (set(halves.recordings[own & side].tolist()) for side in halves.tests)
        assert not first & second
        assert sorted([len(first), len(second)]) == [2, 3]


def test_a_single_recording_is_cut_in_the_middle():
    data = walkers(3, 1, 20)
    halves = in_halves(data, torch.arange(len(data)), tiny(*PATTERN).data)
    assert halves.second.tolist() == 3 * (10 * [False] + 10 * [True])


def test_judges_are_asked_about_images_that_they_have_not_seen():
    """Each user's second half is painted as the next user's first: whoever learned from one half errs in the other."""
    data = walkers()
    swapped = data.images.clone()
    for user in range(4):
        swapped[user * 32 + 16 : user * 32 + 32] = data.images[(user + 1) % 4 * 32 : (user + 1) % 4 * 32 + 16]
    halves = in_halves(replace(data, images=swapped), torch.arange(len(data)), tiny(*PATTERN).data)
    assert by_ridge(halves, swapped[halves.rows]).accuracies == (0.0, 0.0, 0.0)


# ---- between the steps


def test_judging_takes_its_share_of_the_time_and_no_more():
    now = [0.0]
    share = TimeShare(0.1, lambda: now[0])
    assert not share.affords(1)
    now[0] = 10.0
    assert share.affords(1)
    assert not share.affords(1.01)
    with share.spending():
        now[0] += 2
    assert (share.spent, share.last) == (2, 2)
    assert not share.affords(0)
    now[0] = 40.0
    assert share.affords(2)


@pytest.mark.parametrize("hours", [0.0, 1.0])
def test_a_validation_judges_where_there_is_time(tmp_path, capsys, hours):
    made = stage(tmp_path)
    made.judging = TimeShare(SHARE, iter([0.0]).__next__)
    made.judging.clock = lambda: 3600 * hours
    found = [made.validate(Painted(grey), step, None) for step in (1, 2)]
    said = capsys.readouterr().err
    if hours:
        assert [[one[name] for name in ACCURACIES] for one in found] == 2 * [[1.0, 0.25, 0.25]]
        assert made.judging.spent < SHARE * 3600
        assert said == ""
    else:
        assert not any(name in one for one in found for name in ACCURACIES)
        assert said.count("not judged yet") == 1


def test_a_run_ends_in_the_same_weights_with_and_without_judges(tmp_path, monkeypatch):
    monkeypatch.setattr("train.engine.run.pick_device", lambda: CPU)
    monkeypatch.setattr("train.stages.vae.load_images", lambda _: walkers(images=6))
    monkeypatch.setattr("train.judge.judged_vae.SHARE", 1e6)
    monkeypatch.setattr("train.judge.judged_vae.by_network", lambda halves, decoded, *_: by_ridge(halves, decoded))
    states = []
    for which in (VAEStage, JudgedVAEStage):
        folder = tmp_path / which.__name__
        settings = (f"output_dir={folder}", "num_epochs=1", "sample_interval=2")
        config = tiny(*(f"vae_training.{setting}" for setting in settings), *PATTERN)
        with prepared(which, config, lambda *_: 4, lambda *_: lambda: None) as (trainer, look):
            trainer.run(look)
        states.append(load_latest(folder / "checkpoints").state)
        assert ("judge_on_real" in (folder / "metrics.jsonl").read_text()) == (which is JudgedVAEStage)
    for part in ("vae", "ema"):
        for name, tensor in states[0][part].items():
            if isinstance(tensor, torch.Tensor):
                assert torch.equal(tensor, states[1][part][name]), name
