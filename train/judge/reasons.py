"""Where the loss comes from (VAE, UNet, guidance, too few steps, too few images), with the figures that say so."""

from train.base.units import percent, points
from train.judge.arms import CURVE, GENERATED, REAL, RECONSTRUCTED, TIMES
from train.judge.material import Material
from train.judge.verdict import TITLES, Judgement

KEPT = 0.9  # share of an accuracy from which on nothing worth mentioning is lost
VARIED = 0.85  # of the variety of real images of a user
FALLING = 0.02  # share by which the validation loss falls in the last quarter of a training that was too short
RISING = 0.02  # accuracy that the last quarter of the real images still brought


def reasons(one: Judgement, found: dict, losses: list[float], material: Material) -> list[tuple[str, str]]:
    """Pairs of what is the case and what to try, "" where nothing has to be done. `one` is the network's judgement.

    A network that recognises nobody gives no reasons: what it says would be chance.
    """
    made = of_the_number(material)
    if found["sight"]["network"]["blind"]:
        said = f"Judge: a network has learned from the real images, but {found['sight']['network']['doubts']}"
        return [(said, "more real images of each user, which a judge can learn from"), *of_the_vae(found), *made]
    return [
        *of_the_vae(found),
        *of_the_unet(one, found),
        *(of_mixing(found) if material.mixed else of_guidance(found)),
        *of_the_length(losses),
        *of_the_images(one),
        *made,
    ]


def of_the_vae(found: dict) -> list[tuple[str, str]]:
    fine = found["fidelity"]["power"][-1]
    by_judge = {name: (figures["real"]["mean"], figures["trained_on"]["mean"])
                for name, figures in found["reconstructions"].items()}  # fmt: skip
    blind = [name for name, sight in found["sight"].items() if sight["blind"]]
    reached = (f"{TITLES[name]} reaches {percent(kept)} (real images: {percent(real)}"
               f"{', no more than by chance' if name in blind else ''})"
               for name, (real, kept) in by_judge.items())  # fmt: skip
    said = (f"VAE: trained on its reconstructions, {' and '.join(reached)}; above {fine['low']} cycles per pixel they "
            f"have {percent(fine['reconstructed'])} of the real images' power")  # fmt: skip
    to_try = (
        "let the VAE keep more: more steps (vae_training), more latent channels (vae.latent_channels), more weight on "
        "the power of textures (vae_loss.spectral_weight) or one halving less (vae.channels)"
    )
    lost = any(kept < KEPT * real for name, (real, kept) in by_judge.items() if name not in blind)
    return [(said, to_try if lost else "")]


def of_the_unet(one: Judgement, found: dict) -> list[tuple[str, str]]:
    """Against reconstructions, since the UNet cannot make what the VAE cannot decode."""
    possible, made = one.accuracy[RECONSTRUCTED].mean, one.accuracy[GENERATED].mean
    right, could_be = (found["right_person"][key]["mean"] for key in ("generated", "reconstructed"))
    said = (f"UNet: trained on generated images alone, a network reaches {percent(made)}, where reconstructions reach "
            f"{percent(possible)}; a network of real images recognises {percent(right)} of the generated ones and "
            f"{percent(could_be)} of the reconstructions")  # fmt: skip
    doubt = found["sight"]["network"]["doubts"]
    said += f"; but {doubt}" if doubt else ""
    return [(said, "train the UNet for more steps (ldm_training)" if made < KEPT * possible else "")]


def of_guidance(found: dict) -> list[tuple[str, str]]:
    right, could_be = (found["right_person"][key]["mean"] for key in ("generated", "reconstructed"))
    if not found["variety"]:
        return []
    ratio = found["variety"]["ratio"]
    said = (f"Guidance: images of one user vary {ratio:.2f} times as much as real ones, and {percent(right)} show the "
            "right one")  # fmt: skip
    if ratio < VARIED and right >= KEPT * could_be:
        return [(said, "less guidance (train.sample --guidance), for more variety")]
    if ratio >= VARIED and right < KEPT * could_be:
        return [(said, "more guidance (train.sample --guidance), for more images of the right person")]
    return []


def of_mixing(found: dict) -> list[tuple[str, str]]:
    right = found["right_person"]["generated"]["mean"]
    said = ("Mixing: the large structures of each generated image are another user's, so that a network of real images "
            f"recognises the right one in {percent(right)} only; what they are worth, a classifier shows")  # fmt: skip
    return [(said, "")]


def of_the_length(losses: list[float]) -> list[tuple[str, str]]:
    if len(losses) < 4:
        return []
    before, last = losses[-1 - max(1, len(losses) // 4)], losses[-1]
    if last > (1 - FALLING) * before:
        return []
    said = f"Too few steps: the UNet's validation loss was still falling, from {before:.4f} to {last:.4f} at the end"
    return [(said, "train the UNet for more steps (ldm_training)")]


def of_the_images(one: Judgement) -> list[tuple[str, str]]:
    brought = one.accuracy[REAL].mean - one.accuracy[CURVE[-1]].mean if CURVE[-1] in one.accuracy else 0.0
    if brought <= RISING:
        return []
    said = f"Few images: the last quarter of the real images brought {points(brought)} points"
    return [(said, "more real recordings, which are worth more than anything else")]


def of_the_number(material: Material) -> list[tuple[str, str]]:
    made, real = len(material.generated), len(material.training)
    if made >= 0.9 * TIMES[-1] * real:
        return []
    said, most = f"{made:,} generated images are {made / real:.2g} for each real one", f"{TIMES[-1]:g}"
    return [(said, f"make up to {most} for each (train.sample --purpose augment --per_training_image {most})")]
