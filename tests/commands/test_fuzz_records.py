"""A few seconds of tests/commands/fuzz_records.py, which goes on for minutes where it is asked to."""

from tests.commands.fuzz_records import fuzz


def test_a_fuzzed_record_is_read_or_refused(tmp_path):
    said = fuzz(tmp_path, cases=150)
    assert sum(count for (_, sentence), count in said.items() if not sentence) > 20
    assert len(said) > 60  # it does not end in one place only
