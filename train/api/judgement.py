"""Do a model's images help? Classifiers with and without them answer, on recordings that nothing was trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from train.api.user_diffusion import UserDiffusion, whole
from train.base.names import path_of
from train.base.processes import joined, on_main
from train.config.schema import Config
from train.engine.device import pick_device
from train.engine.log import METRICS, read_lines
from train.judge import evaluation
from train.judge.material import collect
from train.judge.pictures import closest_copies, side_by_side
from train.judge.report import report
from train.judge.verdict import HARMS, HELPS
from train.runs.augmented import PAGE, report_of, save_report
from train.runs.card import write_verdict
from train.runs.generated import SEED, folder_to_judge, settings_of
from train.runs.so_far import run_of


@dataclass(frozen=True)
class Evaluated:
    """What the judges say of images. As text, the last lines of the command."""

    folder: Path
    """Where report.html is, and evaluation.json, beside the images or, of those of another program, the model."""
    figures: dict
    """Every figure, as in evaluation.json."""

    @property
    def page(self) -> Path:
        return self.folder / PAGE

    @property
    def verdict(self) -> dict[str, str]:
        """Sentences that begin with "helps", "does harm", "makes no difference ..." or "cannot be told", by test set:
        "held_out" and, where there is one, "test_dir".
        """
        return self.figures["verdict"]

    def __str__(self) -> str:
        held_out, on = self.figures["results"]["held_out"], {"test_dir": f"on {self.figures['test_dir']}: "}
        sifting = held_out["sifting"]
        lines = [
            *(f"{on.get(name, '')}{sentence}" for name, sentence in self.verdict.items()),
            *([sifting["sentence"]] if sifting and sifting["word"] in (HELPS, HARMS) else []),
            *(f"to try: {line}" for line in held_out["advice"]),
            f"everything is in {self.page}, every figure in {self.folder}/evaluation.json",
        ]
        return "\n".join(lines)


@joined()
def evaluate(
    model: str | PathLike[str], changes: Mapping[str, object] | None = None, *, config: Config | None = None,
    images: str | PathLike[str] | None = None, test_dir: str | PathLike[str] | None = None, quick: bool = False,
    seed: int = SEED, guidance: float | None = None,
) -> Evaluated:  # fmt: skip
    """Judge the images of the model in a folder, those that `write(purpose="augment")` makes, or others in `images`.

    `changes` and `config` are those of UserDiffusion.load. `test_dir` has real images of other conditions, by user;
    `quick` takes fewer arms and seeds; `seed` is that of the judges. `guidance` names that of the images, where they
    were not made with the one that was chosen for a classifier. Of several processes the first judges. UserError, or
    its BadArgument, where there is nothing to judge.
    """
    seed, folder = whole("seed", seed, 0), path_of(model)
    made, other = (None if path is None else path_of(path) for path in (images, test_dir))

    def judge() -> Evaluated:
        opened = UserDiffusion.load(folder, changes, config=config)
        sampled = opened.config_with(None, guidance, "augment", {}, choose=False)
        return judged(opened, sampled, made, other, quick, seed)

    return on_main(judge)


def judged(
    model: UserDiffusion, config: Config, given: Path | None, test_dir: Path | None, quick: bool, seed: int
) -> Evaluated:
    """The judgement that is there already, where nothing has changed since."""
    device = pick_device()
    settings = settings_of(config.sampling, SEED, model.trained)
    images, folder = folder_to_judge(model.folder, settings, given, Path(config.data.dir), model.users)
    vae = model.vae.to(device)
    material = collect(model.folder, config, images, test_dir, vae, device)
    metrics = read_lines(run_of(model.folder) / METRICS)
    losses = [line["validation_loss"] for line in metrics if "validation_loss" in line]
    where = {"model": str(model.folder), "images": str(images), "test_dir": test_dir and str(test_dir)}
    key = f"{evaluation.hash_of_question(material, vae, losses, quick, seed)} of {where}"
    there = report_of(folder, key)
    if there:
        print(f"judging: nothing has changed since {folder}/evaluation.json was written; without it, judges are asked "
              "again")  # fmt: skip
    else:
        found = evaluation.evaluate(material, vae, losses, quick, seed, device, lambda line: print(f"judging: {line}"))
        verdicts = {name: result["verdict"]["sentence"] for name, result in found["results"].items()}
        there = {"verdict": verdicts, "of": key, **where, **found}
        pictures = {"images": side_by_side(material), "copies": closest_copies(material, there["copies"]["pairs"])}
        page = report(there, {name: picture for name, picture in pictures.items() if picture})
        save_report(folder, there, page, pictures["images"])
        there = report_of(folder, key)  # as whoever reads the file has it
    if given is None:
        write_verdict(model.folder, list(there["verdict"].values()))
    return Evaluated(folder, there)
