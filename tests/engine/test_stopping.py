"""When to stop: a signal is heard at the next step, and time is left for one more step or it is over."""

import signal

import pytest

from train.engine.stopping import NOT_DONE, WISHES, Stop


def test_max_hours_leaves_time_for_a_step_as_long_as_the_longest(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    stop = Stop(max_hours=1)
    for seconds in (600, 1400, 200):
        now[0] += seconds
        assert stop.reason() is None
    now[0] += 1  # 2201 are over, 1400 more would be 3601
    assert stop.reason() == ("max_hours 1 would be over after another step", NOT_DONE)


def test_after_the_last_step_there_is_no_other_to_have_time_for(monkeypatch):
    monkeypatch.setattr("time.monotonic", iter([0.0, 1800.1, 3700.0, 3701.0]).__next__)
    stop = Stop(max_hours=1)
    assert [stop.reason(last=True), stop.reason(last=True)] == [None, None]
    assert stop.reason()[1] == NOT_DONE


def test_a_signal_is_the_reason_even_where_the_time_is_over():
    stop = Stop(max_hours=1e-9)
    with stop.listening():
        assert stop.reason()[1] == NOT_DONE
        signal.raise_signal(signal.SIGTERM)
    assert stop.reason(last=True) == ("SIGTERM", 128 + signal.SIGTERM)


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_ctrl_c_that_torchrun_repeats_is_one_wish(monkeypatch, first):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    stop = Stop(max_hours=None)
    with stop.listening():
        signal.raise_signal(first)
        signal.raise_signal(signal.SIGINT)
    assert stop.reason() == ("SIGINT", 128 + signal.SIGINT)


@pytest.mark.parametrize("number", WISHES)
def test_a_signal_that_is_ignored_stays_ignored(number):
    """SIGHUP under nohup; SIGINT in what a shell's script starts in the background."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        stop = Stop(max_hours=None)
        with stop.listening():
            signal.raise_signal(number)
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)
    assert stop.reason() is None


@pytest.mark.parametrize("number", WISHES)
def test_what_can_wait_ends_at_a_signal_and_is_not_begun_after_one(number):
    stop, done = Stop(max_hours=None), []

    def work() -> str:
        done.append("begun")
        signal.raise_signal(number)
        done.append("went on")
        return "result"

    with stop.listening():
        assert stop.unless_asked(lambda: "result") == "result"
        assert stop.unless_asked(work) is None
        assert stop.unless_asked(work) is None
    assert done == ["begun"]
    assert stop.reason() == (number.name, 128 + number)


def test_who_listened_before_does_so_again_after_a_second_ctrl_c():
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    stop = Stop(max_hours=None)

    def twice() -> None:
        with stop.listening():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        twice()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
