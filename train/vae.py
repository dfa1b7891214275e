"""Train the VAE: `python -m train.vae --config configs/demo.yaml`.

Writes `final_model/`: the averaged weights, the scale of the training images' latents, the split. Says what the
reconstructions keep of the images, and of what tells users apart.
"""

from train.api.training import train_vae
from train.config import cli


def main(argv: list[str] | None = None) -> None:
    parser = cli.make_parser("vae", __doc__, "vae")
    train_vae(cli.read_config(parser.parse_args(argv), "vae"))


if __name__ == "__main__":
    cli.run(main)
