"""What does not depend on the arms: the right person, what the VAE keeps, distances, variety, copies."""

from collections.abc import Callable
from dataclasses import asdict

import torch
from torch import Tensor

from nets.vae import AutoencoderKL
from train.data.dataset import evenly
from train.judge import distances as d
from train.judge.arms import REAL, RECONSTRUCTED
from train.judge.interval import over_recordings
from train.judge.material import Material
from train.judge.sight import doubts, is_blind
from train.judge.spectra import row_spectra
from train.judge.trials import Trials
from train.judge.verdict import by_chance
from train.stages import fidelity
from train.stages.copies import Originals, closest_pairs
from train.stages.vae import reconstructions

MOST = 2000  # images of each kind whose distances are measured
ENCODED = 256  # images whose latents are looked at
COARSE = 16, 8  # rows and columns of the row spectra whose distances are measured: fewer numbers than images
PAIRS = 12
Features = Callable[[Tensor], Tensor]  # of uint8 images (N, C, H, W), float32 (N, D)


def counts(material: Material) -> dict:
    """How many images of each kind there are, and how large they are."""
    _, channels, side, _ = material.training.images.shape
    other = material.other_conditions
    return {
        "users": material.user_names,
        "training_images": len(material.training),
        "held_out_images": len(material.held_out.images),
        "held_out_recordings": len(material.held_out.recordings.unique()),
        "generated_images": len(material.generated),
        "test_images": len(other.images) if other else None,
        "resolution": side,
        "channels": channels,
    }


def sight(material: Material, trials: dict[str, Trials]) -> dict:
    """By judge: what the real images alone have taught it, which decides what its word on others is worth."""
    test, found = material.held_out, {}
    for name, one in trials.items():
        real = over_recordings(one.correct(REAL, "held_out", test.images.users), test.recordings)
        chance = by_chance(one.recognised[REAL]["held_out"], test.images.users)
        found[name] = {"blind": is_blind(real, chance), "doubts": doubts(real, chance)}
    return found


def right_person(material: Material, trials: Trials) -> dict:
    """How often networks trained on the real images recognise the right person, and whom instead."""
    users = material.num_users
    shown, asked_for = material.held_out_shown, material.generated.users
    recordings = material.held_out.recordings
    right = trials.correct(REAL, "held_out", material.held_out.images.users)
    decoded = trials.correct(REAL, "reconstructed", material.held_out_reconstructed.users)
    made = trials.correct(REAL, "generated", asked_for)
    said = trials.recognised[REAL]["generated"]  # S N
    confusion = (asked_for * users + said).flatten().bincount(minlength=users**2).reshape(users, users)
    return {
        "generated": asdict(over_recordings(made, torch.arange(len(asked_for)))),
        "held_out": asdict(over_recordings(right, recordings)),
        "reconstructed": asdict(over_recordings(decoded, recordings[shown])),
        "confusion": confusion.tolist(),
    }


def kept_by_vae(material: Material, trials: dict[str, Trials]) -> dict:
    """By judge: accuracy of real training images on real ones, and with reconstructions on either side."""
    test, shown = material.held_out, material.held_out_shown
    users, recordings = test.images.users, test.recordings
    found = {}
    for name, one in trials.items():
        figures = {
            "real": over_recordings(one.correct(REAL, "held_out", users), recordings),
            "trained_on": over_recordings(one.correct(RECONSTRUCTED, "held_out", users), recordings),
            "tested_on": over_recordings(one.correct(REAL, "reconstructed", users[shown]), recordings[shown]),
        }
        found[name] = {key: asdict(figure) for key, figure in figures.items()}
    return found


def fidelity_of(material: Material, vae: AutoencoderKL, device: torch.device) -> dict:
    """Of held-out images and their reconstructions; power of the generated ones as well."""
    real, decoded = material.held_out.images.images[material.held_out_shown], material.held_out_reconstructed.images
    made = material.generated.images[evenly(torch.arange(len(material.generated)), MOST)]
    power = zip(fidelity.BANDS, fidelity.power_ratios(decoded, real), fidelity.power_ratios(made, real), strict=True)
    encoded = real[evenly(torch.arange(len(real)), ENCODED)]
    _, mean, std = reconstructions(vae, encoded, device)
    return {
        "psnr": fidelity.mean_psnr(decoded, real),
        "ssim": float(fidelity.ssim(decoded, real).mean()),
        "power": [{"low": low, "high": high, "reconstructed": r, "generated": g} for (low, high), r, g in power],
        "borders": {"reconstructed": fidelity.border_errors(decoded, real),
                    "generated": fidelity.border_statistics(made, real)},
        "inactive_latents": fidelity.inactive_latents(mean, std),
    }  # fmt: skip


# ---- distances


def spaces(material: Material, seen: Features) -> dict[str, Features]:
    """The features in which images are compared."""
    return {"network's features": seen, "row spectra": coarse_spectra(material.training.images)}


def coarse_spectra(real: Tensor) -> Features:
    """Row spectra of fewer numbers than there are images, in units of their deviations over real images."""
    spectra = row_spectra(real, *COARSE)
    mean, deviation = spectra.mean(0), spectra.std(0).clamp(min=1e-6)
    return lambda images: (row_spectra(images, *COARSE) - mean) / deviation


def distances(material: Material, seen: Features, seed: int) -> list[dict]:
    """From held-out real images to generated and to reconstructed ones, each beside the floor of real images.

    None where the held-out recordings cannot be divided into two halves of the same users.
    """
    found = []
    if not can_be_halved(material):
        return found
    for space, features in spaces(material, seen).items():
        real, made, decoded = sets_of_images(material, features)
        for of, other in (("generated", made), ("reconstructed", decoded)):
            for name, distance in (("Fréchet distance", d.frechet_distance), ("kernel distance", d.kernel_distance)):
                beside = asdict(d.beside_floor(distance, real, other, seed))
                found.append({"name": name, "space": space, "of": of, **beside})
    return found


def can_be_halved(material: Material) -> bool:
    """Whether most users have two held-out recordings, so that a half of them shows the same people as the other."""
    pairs = torch.stack([material.held_out.images.users, material.held_out.recordings]).unique(dim=1)
    several = (pairs[0].bincount(minlength=material.num_users) > 1).sum()
    return 2 * int(several) > material.num_users and len(material.generated) > 1


def sets_of_images(material: Material, features: Features) -> tuple[d.Seen, d.Seen, d.Seen]:
    """Held-out real images, generated ones, and reconstructions of held-out ones, as features."""
    real, made, decoded = material.held_out, material.generated, material.held_out_reconstructed
    return (
        d.Seen(features(real.images.images), real.images.users, real.recordings),
        d.Seen(features(made.images), made.users, torch.arange(len(made))),
        d.Seen(features(decoded.images), decoded.users, torch.arange(len(decoded))),
    )


def coverage(material: Material, seen: Features, seed: int) -> dict | None:
    """Precision, recall, density and coverage of generated images, and of one half of the real ones for the other."""
    if not can_be_halved(material):
        return None
    real, made, _ = sets_of_images(material, seen)
    value, floor = d.coverage_beside_floor(real, made, seed)
    return {"space": "network's features", "generated": value, "floor": floor}


def variety_within_users(material: Material) -> dict | None:
    """The mean distance between two images of a user in row spectra, beside that of the real training images.

    None where no user has two generated ones, or two real ones that differ.

    Not in the network's features: it has learned to see all training images of a user alike.
    """
    features = coarse_spectra(material.training.images)
    made, real = (d.variety(features(one.images), one.users) for one in (material.generated, material.training))
    known = made >= 0 and real > 0  # NaN, of single images, is neither
    return {"generated": made, "real": real, "ratio": made / real} if known else None


# ---- copies


def copies(material: Material, seen: Features) -> dict:
    """Which generated images are copies of training images; held-out real ones, which cannot be, are asked as well."""
    training = material.training
    originals = Originals(training.images, training.users, material.training_recordings, seen)
    made, real = (originals.find_copies(a.images, a.users) for a in (material.generated, material.held_out.images))
    return {
        "generated_accused": int(made.accused.sum()), "generated": len(made.rows),
        "held_out_accused": int(real.accused.sum()), "held_out": len(real.rows),
        "pairs": [
            {"generated": material.generated_files[made.rows[at]],
             "training": material.training_files[made.nearest[at]],
             "generated_row": int(made.rows[at]), "training_row": int(made.nearest[at]),
             "distance": float(made.distance[at]), "ratio": float(made.ratio[at]), "accused": bool(made.accused[at])}
            for at in closest_pairs(made, PAIRS).tolist()
        ],
    }  # fmt: skip
