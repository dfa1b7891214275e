"""What the README says of the source is so."""

import re
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from nets.unet import UNet2DConditionModel
from nets.vae import AutoencoderKL
from tests.tiny import tiny, tiny_denoiser, tiny_images, tiny_vae
from train import memcheck
from train.config.schema import Config
from train.data.split import make_split
from train.runs.final_model import save_ldm

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
SOURCES = [path for package in ("nets", "diffusion", "train") for path in (ROOT / package).rglob("*.py")]
FOLDERS = sorted({path.parent.relative_to(ROOT).as_posix() for path in SOURCES})
LINKED = re.compile(r"\]\(([^)\s#]+)[^)]*\)")  # [text](path), also of a picture


def section(title: str) -> str:
    """The text below a heading of the README, up to the next of its rank."""
    below = README.partition(f"\n## {title}\n")[2]
    assert below, f"the README has no section {title!r}"
    return below.partition("\n## ")[0]


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_reading_order_names_every_folder_of_sources(folder):
    order = section("Reading the source")
    named = {*LINKED.findall(order), *re.findall(r"`([^`\n]+)`", order)}
    assert {folder, f"{folder}/", f"{folder}/*.py"} & named


def test_the_reading_order_names_no_source_that_is_gone():
    order = section("Reading the source")
    paths = re.findall(r"[\[(`]((?:nets|diffusion|train|tests|configs|docs)/[\w/.]*)[\])`]", order)
    assert paths
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_every_picture_and_file_that_is_linked_is_there():
    linked = [path for path in LINKED.findall(README) if "://" not in path]
    pictures = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)
    assert pictures
    assert set(pictures) <= set(linked)
    assert [path for path in linked if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(("preset", "stages"), [("medium", ["ldm"]), ("texture", ["vae", "ldm"])])
def test_the_account_of_a_preset_is_what_the_command_prints(preset, stages, capsys):
    for stage in stages:
        memcheck.main(["--config", str(ROOT / "configs" / f"{preset}.yaml"), "--gpu", "T4", "--stage", stage])
    assert (ROOT / "docs" / f"memory_{preset}.md").read_text(encoding="utf-8") == capsys.readouterr().out


def test_what_is_said_of_both_cards_is_the_first_line_of_the_command(capsys):
    account = (ROOT / "docs" / "memory_medium.md").read_text(encoding="utf-8")
    memcheck.main(["--config", str(ROOT / "configs/medium.yaml"), "--gpu", "P100"])
    for said in (account, capsys.readouterr().out):
        assert f'"{said.splitlines()[0]}"' in section("What fits on 16 GB")


def test_the_tables_of_what_fits_are_two_of_that_account():
    account = (ROOT / "docs" / "memory_medium.md").read_text(encoding="utf-8").split("\n\n")
    tables = [paragraph for paragraph in section("What fits on 16 GB").split("\n\n") if paragraph.startswith("|")]
    assert len(tables) == 2
    assert all(table in account for table in tables)


def python_of(title: str) -> str:
    """The lines of Python in a section."""
    (lines,) = re.findall(r"```python\n(.*?)```", section(title), re.DOTALL)
    return lines


def test_the_sampler_alone_makes_what_the_readme_says():
    """And it takes ten lines, with nothing of train/."""
    lines, names = python_of("Reading the source"), {}
    body = [line for line in lines.splitlines() if line.strip() and not re.match("import|from|print", line)]
    assert len(body) <= 10
    assert "train" not in lines
    torch.manual_seed(0)
    exec(compile(lines, "README.md", "exec"), names)
    mean, deviation = map(float, re.search(r"# about (\S+) and (\S+)", lines).groups())
    assert names["x"].mean() == pytest.approx(mean, abs=0.03)  # 4 deviations of the mean of 5000
    assert names["x"].std() == pytest.approx(deviation, abs=0.03)


def test_the_lines_from_python_make_the_images_they_say(tmp_path, monkeypatch):
    lines, names = python_of("From Python"), {}
    config, data = tiny(), tiny_images(count=24, users=6)
    denoiser, vae = tiny_denoiser(config, num_users=6), tiny_vae(config)
    folder = tmp_path / re.search(r'load\("([^"]+)"', lines)[1]
    save_ldm(folder, denoiser, vae, config, data, make_split(data, config.data))
    monkeypatch.chdir(tmp_path)
    exec(compile(lines, "README.md", "exec"), names)
    assert [(user, len(images)) for user, images in names["images"].items()] == [("ID1", 4), ("ID5", 4)]


def operations(config: Config) -> dict[str, int]:
    """Multiplications and additions of a step's forward and backward, for one image, as torch counts them."""
    unet, side = config.unet, config.latent_side
    with torch.device("meta"), FlopCounterMode(display=False) as of_vae:
        vae = AutoencoderKL(config.vae)
        vae.decode(vae.encode(torch.empty(1, *config.image_shape)).mean).sum().backward()
    with torch.device("meta"), FlopCounterMode(display=False) as of_unet:
        latents, context = torch.empty(1, unet.latent_channels, side, side), torch.empty(1, 1, unet.cross_attention_dim)
        UNet2DConditionModel(unet)(latents, torch.empty(1), context).sum().backward()
    return {"vae": of_vae.get_total_flops(), "ldm": of_unet.get_total_flops()}


def test_the_table_of_operations_is_what_torch_counts():
    found = re.findall(r"^\| `(\w+)` \| (.*x.*) \|$", section("How long, for how many images"), re.MULTILINE)
    rows = {name: row.split(" | ") for name, row in found}
    assert rows.keys() == {path.stem for path in (ROOT / "configs").glob("*.yaml")}
    for name, row in rows.items():
        config = Config.read(ROOT / f"configs/{name}.yaml")
        trainings = [config.training(stage) for stage in ("vae", "ldm")]
        assert row[0::2][:2] == [f"{training.num_steps:,} x {training.images_per_step}" for training in trainings]
        images = [training.num_steps * training.images_per_step for training in trainings]
        total = sum(count * float(each) / 1e6 for count, each in zip(images, row[1:4:2], strict=True))
        assert float(row[4]) == pytest.approx(total, abs=0.06)
        if name in ("demo", "medium"):
            assert row[1:4:2] == [f"{count / 1e9:,.1f}" for count in operations(config).values()]
