"""Train the UNet and the user encoder on the VAE's latents: `python -m train.ldm --config configs/demo.yaml`.

Writes `final_model/`: unet/ condition_encoder/ vae/ scheduler/ with averaged weights, the users' names, the split.
"""

from train.config import cli
from train.engine.run import train_stage
from train.memory.fit import plan_micro_batch
from train.memory.verify import watch_memory
from train.stages.ldm import LDMStage


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("ldm", __doc__, "ldm")
    cli.add_flags(parser, cli.BEGINNING)
    config = cli.read_config(parser.parse_args(argv), "ldm", more=cli.BEGINNING)
    train_stage(LDMStage, config, plan_micro_batch, watch_memory)


if __name__ == "__main__":
    cli.run(main)
