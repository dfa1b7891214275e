"""An evaluation as `evaluate` returns it, made up: its numbers hang together, but nothing was measured."""

import random
from dataclasses import asdict

from PIL import Image

from train.judge import augment
from train.judge.arms import GENERATED, RECONSTRUCTED, SHARES, TIMES, Arm, plan
from train.judge.interval import over_seeds
from train.judge.results import real_images_for
from train.judge.verdict import TITLES

ADDED = {0.5: 0.008, 1.0: 0.021, 2.0: 0.024, 4.0: 0.011}  # what generated images add, by how many there are
LESS = {0.25: -0.2, 0.5: -0.08, 0.75: -0.03, 1.0: 0.0}  # what is lost with fewer real images


def figure(mean: float, rng: random.Random, spread: float = 0.005, seeds: int = 5) -> dict:
    return asdict(over_seeds([mean + rng.gauss(0, spread) for _ in range(seeds)]))


def accuracy(arm: Arm) -> float:
    alone = {GENERATED: 0.746, RECONSTRUCTED: 0.884}
    longer = 0.003 * (arm.length > 1)
    added = ADDED[arm.times] - 0.03 * (not arm.augmented) if arm.times else 0.0
    return alone.get(arm) or 0.91 + 0.018 * arm.augmented + longer + added + LESS[arm.real]


def judged(judge: str, quick: bool, shift: float, rng: random.Random) -> dict:
    """A judge's arms, learning curve and worth, and its judgement."""
    every = plan({times: times for times in TIMES}, quick, sifted=0.0 if quick else 0.95)
    planned = [arm for arm in every if judge == "network" or arm.length == 1]
    arms = [
        {"judge": judge, "name": arm.name, "group": arm.group, "times": arm.times or None, "augmented": arm.augmented,
         "exposure": arm.exposure, "steps": round(250 * arm.length) if judge == "network" else None,
         "images": round(620 * (arm.real + arm.times)), "accuracy": figure(accuracy(arm) + shift, rng), "gain": None}
        for arm in planned
    ]  # fmt: skip
    baseline = max((a for a in arms if a["group"] == "without generated"), key=lambda a: a["accuracy"]["mean"])
    mixed = [arm for arm in arms if arm["group"] == "with generated"]
    for arm in mixed:
        arm["gain"] = figure(arm["accuracy"]["mean"] - baseline["accuracy"]["mean"], rng)
    best = max(mixed, key=lambda arm: arm["gain"]["mean"])
    of_curve = {f"{share:.0%} of the real images": share for share in SHARES} | {"real": 1.0}
    curve = [
        {"judge": judge, "share": share, "images": round(620 * share),
         "accuracy": next(arm["accuracy"] for arm in arms if arm["name"] == name)}
        for name, share in of_curve.items() if not quick
    ]  # fmt: skip
    plain = [arm for arm in mixed if arm["exposure"] == "steps" and not arm["augmented"]]
    beside = max(plain, key=lambda arm: arm["accuracy"]["mean"])
    reached = beside["accuracy"]["mean"]
    there = real_images_for(reached, [(point["images"], point["accuracy"]["mean"]) for point in curve])
    said = f"{beside['name']} reaches {reached:.1%}, as about {there or 0:.0f} of the 620 real images do alone"
    worth = [{"judge": judge, "sentence": said, "times": there and there / 620, "arm": beside["name"],
              "accuracy": reached}] * (not quick)  # fmt: skip
    one = {"name": judge, "word": "helps", "may_judge": True, "says": "it may judge: 92.9% without generated images "
           "(chance 3.2%)", "chance": 1 / 31, "baseline": baseline["name"], "accuracy": baseline["accuracy"],
           "arm": best["name"], "exposure": best["exposure"], "gain": best["gain"]}  # fmt: skip
    return {"judges": [one], "arms": arms, "learning_curve": curve, "worth": worth}


def result(names: list[str], word: str, quick: bool, shift: float, rng: random.Random) -> dict:
    network, ridge = judged("network", quick, shift, rng), judged("ridge", quick, shift - 0.04, rng)
    both = {key: network[key] + ridge[key] for key in network}
    first = both["judges"][0]
    low, mean, high = (f"{100 * first['gain'][key]:+.1f}" for key in ("low", "mean", "high"))
    users = []
    for name in names:
        real = min(1.0, max(0.55, rng.gauss(0.92 + shift, 0.07)))
        with_generated = min(1.0, real + rng.gauss(0.02, 0.03))
        users.append({"name": name, "images": 80, "real": real, "with_generated": with_generated,
                      "gain": with_generated - real, "right_person": min(1.0, rng.gauss(0.84, 0.1))})  # fmt: skip
    users[0]["right_person"] = None  # nobody asked for images of this user
    weakest = sorted(users, key=lambda user: user["real"])[: max(1, len(users) // 4)]
    sifting = {
        "word": "helps", "sentence": "sifting helps: +1.1 points [+0.2, +2.0], from 92.0% to 93.1%, by "
        f"{TITLES['network']}; of 2,480 generated images it leaves out 301 that look more like somebody else and 2 "
        "that are suspected copies", "judge": "network", "gain": figure(0.011, rng),
        "judges": [{"judge": "network", "unsifted": 0.92, "sifted": 0.931, "gain": figure(0.011, rng)}],
        "generated": 2480, "left_out": {"copy": 2, "somebody else": 301}, "wanted": 620, "left": 612.4,
    }  # fmt: skip
    return {
        "sifting": None if quick else sifting,
        "verdict": {"word": word, "sentence": f"{word}: {mean} points [{low}, {high}], from 92.9% "
                    f"({first['baseline']}) to 95.6% ({first['arm']}), by {TITLES['network']}", "gain": first["gain"],
                    "arm": first["arm"], "exposure": first["exposure"], "baseline": first["baseline"],
                    "judge": "network"},
        "because": ["VAE: trained on its reconstructions, the convolutional network reaches 88.4% (real images: "
                    "91.0%)", "UNet: trained on generated images alone, a network reaches 74.6%"],
        "advice": ["train the UNet for more steps (ldm_training)"],
        **both,
        "users": users,
        "weakest_quarter": {"users": [user["name"] for user in weakest], "real": figure(0.812 + shift, rng),
                            "with_generated": figure(0.861 + shift, rng), "gain": figure(0.049, rng)},
    }  # fmt: skip


def confusion(count: int, images: int, rng: random.Random) -> list[list[int]]:
    """Counts in which each user is taken mostly for some neighbours."""
    table = [[0] * count for _ in range(count)]
    for asked in range(count):
        for _ in range(images):
            near = (asked + rng.choice([1, 1, 1, 5, 12, -1])) % count
            table[asked][asked if rng.random() < 0.84 - 0.3 * (asked % 7 == 3) else near] += 1
    return table


def sample_evaluation(names: list[str] | None = None, quick: bool = False) -> dict:
    """Both judges, every arm, two sets of test images."""
    rng = random.Random(0)
    names = names or [f"ID{i}" for i in range(1, 32)]
    users = len(names)
    bands = [(0.0, 0.125, 0.98, 0.99), (0.125, 0.25, 0.91, 0.85), (0.25, 0.5, 0.75, 0.68)]
    distances = [
        {"name": name, "space": space, "of": of, "value": value, "floor": floor, "floor_high": 1.2 * floor,
         "same": value <= 1.2 * floor}
        for name, space, of, value, floor in [
            ("Fréchet distance", "network's features", "generated", 4.76, 1.29),
            ("kernel distance", "network's features", "generated", 0.0477, 0.00137),
            ("Fréchet distance", "network's features", "reconstructed", 1.24, 1.29),
            ("kernel distance", "network's features", "reconstructed", -0.00012, 0.00137),
            ("Fréchet distance", "row spectra", "generated", 25.6, 6.51),
            ("kernel distance", "row spectra", "generated", 0.205, 0.0232),
            ("Fréchet distance", "row spectra", "reconstructed", 7.69, 6.51),
            ("kernel distance", "row spectra", "reconstructed", 0.0509, 0.0232),
        ]
    ]  # fmt: skip
    pairs = [
        {"generated": f"{names[i % users]}/generated_{7 * i:03}.png", "training": f"{names[i % users]}/rec0_0{i}.png",
         "generated_row": 40 * (i % users) + i, "training_row": 20 * (i % users) + i, "distance": 0.021 + 0.006 * i,
         "ratio": 0.24 + 0.07 * i, "accused": i < 2}
        for i in range(6)
    ]  # fmt: skip
    results = {"held_out": result(names, "helps", quick, 0.0, rng),
               "test_dir": result(names, "makes no difference that could be seen", quick, -0.09, rng)}  # fmt: skip
    return {
        "verdict": {name: found["verdict"]["sentence"] for name, found in results.items()},
        "model": "runs/radar/ldm/final_model", "images": "runs/radar/ldm/generated", "test_dir": "data/carrying",
        "quick": quick, "seed": 0, "seconds": 443.2,
        "data": {"users": names, "training_images": 20 * users, "held_out_images": 80 * users,
                 "held_out_recordings": 8 * users, "generated_images": 40 * users, "test_images": 40 * users,
                 "resolution": 64, "channels": 3},
        "judges": [{"name": "network", "title": TITLES["network"], "steps": 250, "most_steps": 1000},
                   {"name": "ridge", "title": TITLES["ridge"], "steps": None, "most_steps": None}],
        "results": results,
        "sight": {judge: {"blind": False, "doubts": ""} for judge in ("network", "ridge")},
        "right_person": {"generated": figure(0.812, rng), "held_out": figure(0.912, rng),
                         "reconstructed": figure(0.871, rng), "confusion": confusion(users, 40, rng)},
        "reconstructions": {judge: {"real": figure(real, rng), "trained_on": figure(real - 0.05, rng),
                                    "tested_on": figure(real - 0.06, rng)}
                            for judge, real in {"network": 0.91, "ridge": 0.87}.items()},
        "fidelity": {"psnr": 28.43, "ssim": 0.871, "inactive_latents": 0.25,
                     "power": [{"low": low, "high": high, "reconstructed": reconstructed, "generated": generated}
                               for low, high, reconstructed, generated in bands],
                     "borders": {"reconstructed": {"border": 1.12, "corner": 1.31},
                                 "generated": {"border": 1.59, "corner": 2.96}}},
        "distances": distances,
        "coverage": {"space": "network's features",
                     "generated": {"precision": 0.81, "recall": 0.42, "density": 0.77, "coverage": 0.58},
                     "floor": {"precision": 0.91, "recall": 0.9, "density": 0.99, "coverage": 0.95}},
        "variety": {"generated": 5.31, "real": 7.48, "ratio": 5.31 / 7.48},
        "copies": {"generated_accused": 2, "generated": 40 * users, "held_out_accused": 1, "held_out": 80 * users,
                   "pairs": pairs},
        "settings": {"seeds": [0, 1, 2, 3, 4], "augmentation": list(augment.NAMES), "ridge": 0.1, "threads": 2,
                     "network": {"widths": [16, 32, 64, 128], "batch": 32, "learning_rate": 0.005}},
    }  # fmt: skip


def sample_pictures() -> dict[str, Image.Image]:
    return {"images": Image.new("RGB", (120, 60), "navy"), "copies": Image.new("RGB", (60, 40), "teal")}
