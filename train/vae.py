"""Train the VAE: `python -m train.vae --config configs/demo.yaml`.

Writes `final_model/`: the averaged weights, the scale of the training images' latents, the split. Says what the
reconstructions keep of the images, and of what tells users apart.
"""

from train.config import cli
from train.engine.run import train_stage
from train.judge.judged_vae import JudgedVAEStage
from train.memory.fit import plan_micro_batch
from train.memory.verify import watch_memory


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("vae", __doc__, "vae")
    config = cli.read_config(parser.parse_args(argv), "vae")
    train_stage(JudgedVAEStage, config, plan_micro_batch, watch_memory)


if __name__ == "__main__":
    cli.run(main)
