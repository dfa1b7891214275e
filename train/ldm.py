"""Train the UNet and the user encoder on the VAE's latents: `python -m train.ldm --config configs/demo.yaml`.

Writes `final_model/`: unet/ condition_encoder/ vae/ scheduler/ with averaged weights, the users' names, the split.
"""

from train.api.training import train_ldm
from train.config import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("ldm", __doc__, "ldm")
    cli.add_flags(parser, cli.BEGINNING)
    train_ldm(cli.read_config(parser.parse_args(argv), "ldm", more=cli.BEGINNING))


if __name__ == "__main__":
    cli.run(main)
