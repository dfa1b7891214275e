"""A few seconds of tests/data/fuzz.py, which goes on for minutes where it is asked to."""

from PIL import Image

from tests.data.fuzz import FEW_PIXELS, fuzz


def test_fuzzed_files_and_folders_are_read_or_refused(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", FEW_PIXELS)
    counts = fuzz(tmp_path, iter(range(40)), seed=0)
    assert min(counts.values()) >= 5, counts  # it does not end in one place only
    assert "Traceback" not in capfd.readouterr().err
