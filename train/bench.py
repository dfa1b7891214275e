"""Time and memory of what a user pays for, beside the same models of `diffusers`: `python -m train.bench --config C`.

Writes a table, and beside it a JSON file with every single time. Without diffusers, which `make bench` installs, only
our own side is measured.
"""

import shlex
import sys
from dataclasses import replace
from types import ModuleType

import torch

from train.base.cores import Waiting
from train.base.files import write_json
from train.base.progress import progress
from train.config import cli
from train.config.schema import Config
from train.config.sections import MixedPrecision
from train.engine.device import free_memory, pick_device
from train.engine.precision import DTYPES, native_precision
from train.memory.fit import account_of, on_gpu
from train.memory.gpus import gpu_here
from train.memory.models import blank_stage
from train.memory.overhead import cublas
from train.memory.scenario import Scenario
from train.speed import parts, whole
from train.speed.clock import Turn, in_turns
from train.speed.document import document
from train.speed.machine import ceiling, machine
from train.speed.otherwise import BATCHES, adversarial, time_otherwise
from train.speed.sides import diffusers_here


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("bench", __doc__, "ldm")
    parser.add_argument("--record", type=cli.a_path, default="docs/bench.md", metavar="RECORD.md",
                        help="where to write the table; the JSON file lies beside it")  # fmt: skip
    args = parser.parse_args(argv)
    config, device = cli.read_config(args, "ldm"), pick_device()
    found = measure(config, device, diffusers_here())
    words = sys.argv[1:] if argv is None else argv
    found["command"] = shlex.join(["python", "-m", "train.bench", *words])
    args.record.parent.mkdir(parents=True, exist_ok=True)
    args.record.write_text(document(found), encoding="utf-8")
    write_json(args.record.with_suffix(".json"), found)
    print(document(found))


def measure(config: Config, device: torch.device, diffusers: ModuleType | None) -> dict:
    """All figures, as JSON can hold them."""
    waiting = Waiting()
    precisions = {stage: native_precision(device, config.training(stage).mixed_precision) for stage in ("ldm", "vae")}
    found: dict = {"machine": machine(device), "steps": {}, "otherwise": {}, "kept": {}, "peaks": {}}
    todo = progress(total=5, desc="bench", unit="part")
    found["ceiling"] = ceiling(device, DTYPES[precisions["ldm"]])
    for stage, precision in precisions.items():
        todo.update()
        torch.manual_seed(config.seed)
        found |= measure_stage(config, stage, device, precision, diffusers, found)
        free_memory()
    todo.update()
    found["run"] = whole.run_of_ldm(config)
    todo.update()
    found["old recipe"] = None
    if diffusers:
        old = whole.old_step(diffusers, config, device, precisions["ldm"])
        found["old recipe"] = {"images": whole.ACCUMULATION, "rounds": in_turns({"old": old}, device)["old"]}
    todo.close()
    found["waited"] = waiting.share()
    return found


def measure_stage(
    config: Config, name: str, device: torch.device, precision: MixedPrecision, diffusers: ModuleType | None,
    found: dict,
) -> dict:  # fmt: skip
    """What is measured of one stage's models; adds to what `found` has of stages, and returns the rest."""
    scenario = Scenario(config, name, device=device.type).with_training(mixed_precision=precision)
    stage, images = blank_stage(scenario), scenario.micro_batch
    sides = parts.stage_sides(stage, diffusers, precision)
    if name == "ldm":
        stage.use_latents(torch.rand(1, 2, *stage.source.shape))
        for side in sides.values():
            side.source = stage.source
    batch = stage.draw(0, torch.zeros(max(images, *BATCHES), dtype=torch.int64))
    others = {}
    if name == "vae":
        batch = replace(batch, images=torch.rand_like(batch.images) * 2 - 1, adversary=None)

        def against() -> dict[str, Turn]:
            changed = scenario.changed(vae_loss={"adversarial_weight": 0.5, "adversarial_start": 0})
            return adversarial(blank_stage(changed), batch, images, diffusers, precision)

        others["with an adversary"] = against

    found["kept"][name] = parts.kept(sides, batch) | predicted_to_keep(scenario, device)
    if device.type == "cuda":
        predicted = {"predicted for ours": predicted_peak(scenario, device)}
        found["peaks"][name] = parts.peaks(sides, batch, images) | predicted
    flops = parts.flops(stage, batch, images)
    rounds = parts.time_steps(sides, batch, images, diffusers)
    found["steps"][name] = {"images": images, "precision": precision, "flops": flops, "rounds": rounds}
    if name == "ldm":
        rest = {"guided": {"images": config.sampling.batch_size, "rounds": parts.time_guided(sides)}}
    else:
        rest = {"vae": parts.time_vae(sides, batch.images[:images])}
    found["otherwise"][name] = time_otherwise(sides, batch, images, diffusers, others)
    return rest


def predicted_to_keep(scenario: Scenario, device: torch.device) -> dict[str, int]:
    """Bytes per sample, by the account: what a third sample adds to two."""
    at = []
    for batch in (2, 3):
        account = account_of(on_gpu(replace(scenario, device="meta").with_micro_batch(batch), gpu_here(device)))
        at.append(account.of_category("activations", account.forward_ends[0]))
    return {"predicted": at[1] - at[0]}


def predicted_peak(scenario: Scenario, device: torch.device) -> int:
    """Bytes of forward and backward pass beyond what is there between steps, by the account."""
    gpu = gpu_here(device)
    account = account_of(on_gpu(replace(scenario, device="meta", validates=False), gpu))
    return account.peak("backward").bytes - int(account.live()[-1]) + cublas(gpu, account).bytes


if __name__ == "__main__":
    cli.run(main)
