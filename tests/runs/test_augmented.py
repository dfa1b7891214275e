"""What lies where in an augmented data set."""

import os
import shutil
from pathlib import Path

import pytest

from train.base.errors import UserError
from train.base.files import write_json
from train.runs.augmented import bring_report, build, claim_folders, generated_only, real_files
from train.runs.generated import AUGMENTED

ODD = 'a, "b"; \'c\'\tü'


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_real_image_never_takes_the_name_of_a_generated_one():
    paths = ["A/generated_000.png", "A/real_generated_000.png", "A/x.png", "B/GENERATED_12345.PNG", "B/generated_1.jpg"]
    names = ["A/real_real_generated_000.png", *paths[1:3], "B/real_GENERATED_12345.PNG", paths[4]]
    assert real_files(paths, Path("data")) == dict(zip(names, [Path("data") / path for path in paths], strict=True))


def test_any_name_goes_through_the_manifest_unchanged(tmp_path):
    files = [f"{ODD}/{name}.png" for name in (ODD, "=1+1", "generated_000")]
    sources = {file: write(tmp_path / "from" / file, file) for file in files}
    rows = [{"file": file, "user": ODD, "kind": "real"} for file in files[:2]]
    build(tmp_path / "to", sources, [*rows, {"file": files[2], "user": ODD, "kind": "generated"}], None)
    write_json(tmp_path / "to" / AUGMENTED, {})
    assert generated_only(tmp_path / "to", ["else.png", *files]) == [3]
    for file in files:
        assert (tmp_path / "to" / file).read_text() == file


def test_a_generated_image_of_an_interrupted_run_does_not_stay(tmp_path):
    sources = {f"A/{name}": write(tmp_path / f"from/{name}", name) for name in ("x.png", "generated_000.png")}
    write(tmp_path / "to/A/generated_001.png", "old")
    write(tmp_path / "to/A/.x.png.tmp", "killed")
    build(tmp_path / "to", sources, [], [])
    assert sorted(os.listdir(tmp_path / "to/A")) == ["generated_000.png", "x.png"]
    assert sorted(os.listdir(tmp_path / "to")) == ["A", "left_out.csv", "manifest.csv"]


def test_what_a_killed_process_left_is_not_written_through(tmp_path, monkeypatch):
    """A temporary link to an original, where files are copied next time."""
    source = write(tmp_path / "from/x.png", "original")
    other = write(tmp_path / "from/y.png", "other")
    (tmp_path / "to/A").mkdir(parents=True)
    os.link(other, tmp_path / "to/A/.x.png.tmp")
    no_links(monkeypatch)
    build(tmp_path / "to", {"A/x.png": source}, [], None)
    assert other.read_text() == "other"
    assert (tmp_path / "to/A/x.png").read_text() == "original"


def no_links(monkeypatch) -> None:
    def link(*_):
        raise OSError("not here")

    monkeypatch.setattr(os, "link", link)


@pytest.mark.parametrize("links", [True, False], ids=["links", "copies"])
def test_a_link_in_the_data_is_followed(tmp_path, monkeypatch, links):
    write(tmp_path / "elsewhere/x.png", "pixels")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/x.png").symlink_to("../elsewhere/x.png")
    if not links:
        no_links(monkeypatch)
    build(tmp_path / "to", {"A/x.png": tmp_path / "data/x.png"}, [], None)
    placed = tmp_path / "to/A/x.png"
    assert placed.read_text() == "pixels"
    assert not placed.is_symlink()
    assert placed.samefile(tmp_path / "elsewhere/x.png") == links


def test_a_data_set_that_is_not_complete_is_not_judged(tmp_path):
    assert generated_only(tmp_path, ["a", "b"]) == [0, 1]  # any other folder
    write_json(tmp_path / AUGMENTED, {})
    with pytest.raises(UserError, match=r"is not complete; run the same train\.augment again"):
        generated_only(tmp_path, ["a"])
    build(tmp_path, {}, [{"file": "a", "kind": "real"}], None)
    with pytest.raises(UserError, match="no generated image is left in it"):
        generated_only(tmp_path, ["a"])


def test_a_manifest_that_a_spreadsheet_saved_is_read_or_refused(tmp_path):
    write_json(tmp_path / AUGMENTED, {})
    table = "file,kind\nÉ/a,generated\nÉ/b,real\n"
    (tmp_path / "manifest.csv").write_text(table, "utf-8-sig")
    assert generated_only(tmp_path, ["É/a", "É/b"]) == [0]
    for content in (table.replace(",", ";").encode(), table.encode("latin-1")):
        (tmp_path / "manifest.csv").write_bytes(content)
        with pytest.raises(UserError, match=r"manifest\.csv: is not as it was written; delete it"):
            generated_only(tmp_path, ["É/a", "É/b"])


def test_a_refusal_leaves_nothing_behind(tmp_path):
    write(tmp_path / "images/else.txt", "")
    with pytest.raises(UserError, match="images: is not an empty folder"):
        claim_folders(tmp_path / "data", tmp_path / "images", {}, tmp_path / "new", {})
    assert not (tmp_path / "new").exists()


def test_the_report_is_that_of_the_images_or_the_folders_own(tmp_path):
    images, folder = tmp_path / "images", tmp_path / "folder"
    folder.mkdir()
    assert bring_report(images, folder) is None
    for page in ("old", "new"):
        write(images / "report.html", page)
        write_json(images / "evaluation.json", {"images": str(images), "page": page})
        assert bring_report(images, folder)["page"] == page
        assert (folder / "report.html").read_text() == page
    write_json(folder / "evaluation.json", {"images": None, "page": "of nothing"})
    assert bring_report(images, folder)["page"] == "new"
    write_json(folder / "evaluation.json", {"images": str(folder), "page": "own"})
    assert bring_report(images, folder)["page"] == bring_report(None, folder)["page"] == "own"
    shutil.rmtree(folder)
    assert bring_report(None, folder) is None  # sifted: that of all images is about others
