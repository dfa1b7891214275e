"""Laws of the simulated walkers: what the physics promises."""

import dataclasses
import math

import numpy as np
import pytest

from train.data import walkers as sim

MODEL = sim.Person(
    height=1.75, speed=1.35, cycle=1, hip=1, knee=1, ankle=1, arm=1, elbow=1, sway=1, lean=0, asymmetry=0,
    limp=0, girth=1, reflectivity=(0,) * 7,
)  # the paper's walker, without a person's deviations
BIN = sim.SAMPLE_RATE / 128  # Hz
HOP = 4  # samples between columns


def doppler_axis(resolution: int) -> np.ndarray:
    """The Doppler frequency (Hz) in the middle of each row, the highest first."""
    n = resolution * math.ceil(sim.WINDOW / resolution)
    return ((np.arange(n) - n // 4) * sim.SAMPLE_RATE / n).reshape(resolution, -1).mean(1)[::-1]


def clean_spectrogram(person, recording, seconds=2.4):
    """Noise-free power, 128 x columns HOP samples apart."""
    t = np.arange(round(seconds * sim.SAMPLE_RATE) + sim.WINDOW) / sim.SAMPLE_RATE
    starts = np.arange(0, len(t) - sim.WINDOW, HOP)
    return sim.spectrogram(sim.echo(person, recording, t), starts, 128)


def speeds(person, recording):
    """Speed (m/s) along the walking direction at each moment of one cycle, S x N."""
    t = np.linspace(0, sim.cycle_seconds(person, recording), 2001)
    centres, _ = sim.walk(person, recording, t)
    return np.diff(centres[:, 0]) / np.diff(t)


def decibel(power):
    return 10 * np.log10(power)


@pytest.mark.parametrize("azimuth", [0.0, 0.6])
@pytest.mark.parametrize("pace", [0.9, 1.1])
def test_torso_line_lies_at_2v_over_lambda_within_one_bin(pace, azimuth):
    recording = sim.Recording(pace=pace, azimuth=azimuth)
    # The torso sways once per step, so the mean over a whole cycle is its line.
    columns = round(sim.cycle_seconds(MODEL, recording) * sim.SAMPLE_RATE / HOP)
    brightest = clean_spectrogram(MODEL, recording)[:, :columns].argmax(0)
    doppler = 2 * MODEL.speed * pace * np.cos(azimuth) / sim.WAVELENGTH
    assert abs(doppler_axis(128)[brightest].mean() - doppler) < BIN


@pytest.mark.parametrize("number", [1, 2])
def test_spectrogram_is_periodic_with_the_gait_cycle(number):
    person, recording = sim.draw_person(0, number), sim.Recording(phase=0.3, azimuth=0.3, elevation=0.1)
    # Sampled so that one cycle is a whole number of samples.
    cycle = round(sim.cycle_seconds(person, recording) * sim.SAMPLE_RATE)
    t = np.arange(2 * cycle + sim.WINDOW) * sim.cycle_seconds(person, recording) / cycle
    starts = np.arange(0, cycle, HOP)
    signal = sim.echo(person, recording, t)
    now, later, half = (sim.spectrogram(signal, starts + lag, 128) for lag in (0, cycle, cycle // 2))
    np.testing.assert_allclose(later, now, rtol=1e-6, atol=1e-9 * now.max())
    assert np.abs(half - now).max() > 0.1 * now.max()  # these two people are not symmetrical


def test_without_asymmetry_the_spectrogram_repeats_every_step():
    recording = sim.Recording()
    cycle = 2 * round(sim.cycle_seconds(MODEL, recording) * sim.SAMPLE_RATE / 2)
    t = np.arange(2 * cycle) * sim.cycle_seconds(MODEL, recording) / cycle

    def one_cycle_and_a_step_later(person):
        signal, starts = sim.echo(person, recording, t), np.arange(0, cycle // 2, HOP)
        return sim.spectrogram(signal, starts, 128), sim.spectrogram(signal, starts + cycle // 2, 128)

    now, later = one_cycle_and_a_step_later(MODEL)
    np.testing.assert_allclose(later, now, rtol=1e-6, atol=1e-9 * now.max())
    for deviation in ({"asymmetry": 0.1}, {"limp": 0.03}):
        now, later = one_cycle_and_a_step_later(dataclasses.replace(MODEL, **deviation))
        assert np.abs(later - now).max() > 0.05 * now.max()


@pytest.mark.parametrize("number", range(1, 32))
def test_feet_reach_the_greatest_doppler_and_stay_in_the_picture(number):
    greatest = speeds(sim.draw_person(0, number), sim.Recording(pace=1.05)).max(1)
    assert sim.SEGMENT[greatest.argmax()] == sim.FOOT
    doppler = 2 * greatest / sim.WAVELENGTH
    assert greatest[sim.SEGMENT == sim.FOOT].min() > 1.1 * greatest[sim.SEGMENT != sim.FOOT].max()
    assert doppler.max() < doppler_axis(128)[0]


def test_top_of_the_spectrogram_is_the_foot():
    recording = sim.Recording()
    power = clean_spectrogram(MODEL, recording)
    top = doppler_axis(128)[(decibel(power / power.max()) > -sim.DYNAMIC_RANGE).any(1).argmax()]
    fastest = speeds(MODEL, recording).max(1)
    foot = 2 * fastest[sim.SEGMENT == sim.FOOT].max() / sim.WAVELENGTH
    assert abs(top - foot) < 3 * BIN  # half of the window's main lobe is 2 bins


def test_everybody_advances_by_speed_times_cycle():
    recording = sim.Recording(pace=1.02)
    tc = sim.cycle_seconds(MODEL, recording)
    centres, axes = sim.walk(MODEL, recording, np.array([0.1, 0.1 + tc]))
    stride = np.broadcast_to([MODEL.speed * 1.02 * tc, 0, 0], (12, 3))
    np.testing.assert_allclose(centres[..., 1] - centres[..., 0], stride, atol=1e-9)
    np.testing.assert_allclose(np.linalg.norm(axes, axis=1), 1, atol=1e-12)


def joints(phase):
    """Where the segments of the model's walker start and end, by segment: 2 x 3 (or 3, in the trunk) each."""
    t = np.array([phase * sim.cycle_seconds(MODEL, sim.Recording())])
    centres, axes = sim.walk(MODEL, sim.Recording(), t)
    half = MODEL.height * sim.LENGTH[sim.SEGMENT, None, None] / 2 * axes
    start, end = (centres - half)[..., 0], (centres + half)[..., 0]
    return [(start[k == sim.SEGMENT], end[k == sim.SEGMENT]) for k in range(7)]


@pytest.mark.parametrize("phase", [0.0, 0.15, 0.4, 0.8])
def test_limbs_hang_together(phase):
    parts = joints(phase)
    for above, below in [(sim.THIGH, sim.SHANK), (sim.SHANK, sim.FOOT), (sim.UPPER_ARM, sim.LOWER_ARM)]:
        np.testing.assert_allclose(parts[above][1], parts[below][0], atol=1e-12)
    np.testing.assert_allclose(parts[sim.TORSO][1], parts[sim.HEAD][0], atol=1e-12)
    for pair, trunk in [(sim.THIGH, parts[sim.TORSO][0]), (sim.UPPER_ARM, parts[sim.TORSO][1])]:
        np.testing.assert_allclose(parts[pair][0].mean(0, keepdims=True), trunk, atol=1e-12)


def test_at_heel_strike_right_leg_is_ahead_and_right_arm_behind():
    parts = joints(0.0)
    for part, ahead in [(sim.FOOT, 1), (sim.THIGH, 1), (sim.UPPER_ARM, -1), (sim.LOWER_ARM, -1)]:
        start, end = parts[part]  # of thigh and upper arm: the hips and the shoulders, which turn too
        assert ahead * (start[0, 0] - start[1, 0]) > 0
        assert ahead * (end[0, 0] - end[1, 0]) > 0


def test_toes_point_up_at_heel_strike_and_down_after_toe_off():
    for phase, low, high in [(0.0, 0.05, 0.15), (0.7, -0.3, -0.15)]:
        (ankle, _), (toes, _) = (ends[:, 2] for ends in joints(phase)[sim.FOOT])
        assert low < toes - ankle < high


def test_the_pelvis_falls_on_the_side_of_the_swinging_leg():
    right, left = joints(0.15)[sim.THIGH][0][:, 2]  # the right leg stands
    assert left < right - 0.01


def test_curve_passes_its_points_and_has_period_one():
    points = [(-0.1, 25.0), (0.5, -15.0), (0.2, 3.0)]
    x, y = np.array(points).T
    for cycles in (-1, 0, 2):
        np.testing.assert_allclose(sim.curve(points, x + cycles), y, atol=1e-9)


def test_relative_speed_outside_the_model_is_refused():
    with pytest.raises(ValueError, match="outside"):
        sim.walk(dataclasses.replace(MODEL, speed=3.5), sim.Recording(), np.zeros(1))


def test_a_sphere_reflects_its_disc_from_every_side():
    np.testing.assert_allclose(sim.ellipsoid_rcs(0.2, 0.2, 0.2, np.linspace(-1, 1, 9)), np.pi * 0.2**2)


@pytest.mark.parametrize("resolution", [48, 64, 128, 256])
@pytest.mark.parametrize("doppler", [-300.0, 0.0, 216.0, 1000.0])
def test_a_pure_tone_lands_in_its_bin(doppler, resolution):
    tone = 2 * np.exp(2j * np.pi * doppler * np.arange(1000) / sim.SAMPLE_RATE)
    power = sim.spectrogram(tone, np.array([0, 300, 800]), resolution)
    axis = doppler_axis(resolution)
    assert power.shape == (resolution, 3)
    assert (np.abs(axis[power.argmax(0)] - doppler) <= (axis[0] - axis[1]) / 2 + 1e-9).all()


def test_a_tone_in_the_middle_of_a_bin_has_its_power():
    tone = 3 * np.exp(2j * np.pi * 20 * BIN * np.arange(500) / sim.SAMPLE_RATE)
    assert sim.spectrogram(tone, np.array([7]), 128).max() == pytest.approx(9)


def test_noise_has_the_asked_power():
    signal = 5 * np.exp(1j * np.arange(100_000))
    noise = sim.add_noise(signal, 20, np.random.default_rng(0)) - signal
    assert np.mean(np.abs(noise) ** 2) == pytest.approx(0.25, rel=0.02)


def test_jet_goes_from_dark_blue_over_green_to_dark_red():
    colours = sim.jet(np.array([0, 0.125, 0.5, 0.875, 1])).tolist()
    assert colours == [[0, 0, 128], [0, 0, 255], [128, 255, 128], [255, 0, 0], [128, 0, 0]]


def test_first_recording_has_its_own_random_numbers():
    person, (recording, _) = np.random.default_rng([5, 3]), sim.draw_recording(5, 3, 1)
    assert recording.phase != person.uniform()


def test_pictures_do_not_depend_on_the_number_of_users_or_images():
    few = {(d, n): image for d, n, image in sim.simulate([2], 3, 32, seed=1)}
    many = {(d, n): image for d, n, image in sim.simulate([1, 2], 12, 32, seed=1)}
    assert len(few) == 3
    assert len(many) == 24
    for key, image in few.items():
        np.testing.assert_array_equal(image, many[key])
    other_seed = next(sim.simulate([2], 1, 32, seed=2))[2]
    assert (other_seed != few["ID2", "rec01_00.png"]).any()


# ---- other conditions

PEOPLE = range(1, 32)
CARRYING, OBLIQUE, NOISY = (sim.CONDITIONS[name] for name in ("carrying", "oblique", "noisy"))


def drawn(condition, recordings=range(1, 11)):
    """The recordings of every person under a condition."""
    return [sim.draw_recording(0, person, number, condition)[0] for person in PEOPLE for number in recordings]


def through_a_cycle(person):
    """Centres and axes of the scatterers, S x 3 x 1001 each, at the same phases whatever the speed."""
    recording = sim.Recording()
    return sim.walk(person, recording, np.linspace(0, sim.cycle_seconds(person, recording), 1001))


def angles(axes, segment):
    """In the walking plane, from the vertical downwards to ahead: 2 x N (right, left) or 1 x N, rad."""
    own = segment == sim.SEGMENT
    return np.unwrap(np.arctan2(axes[own, 0], -axes[own, 2]))


def test_no_recording_is_one_of_another_condition():
    phases = [recording.phase for condition in sim.CONDITIONS.values() for recording in drawn(condition)]
    assert len(set(phases)) == len(phases) == 4 * 31 * 10
    noises = [sim.draw_recording(0, 3, 1, condition)[1].standard_normal() for condition in sim.CONDITIONS.values()]
    assert len(set(noises)) == 4


@pytest.mark.parametrize("name", ["plain", "oblique", "noisy"])
def test_the_same_people_are_seen_under_other_conditions(name):
    for number in PEOPLE:
        assert sim.CONDITIONS[name].of(sim.draw_person(0, number)) == sim.draw_person(0, number)


@pytest.mark.parametrize("name", ["plain", "carrying", "noisy"])
def test_azimuth_and_noise_are_as_ever_but_where_they_are_meant(name):
    recordings = drawn(sim.CONDITIONS[name])
    assert max(abs(recording.azimuth) for recording in recordings) <= math.radians(20)
    if name != "noisy":
        assert all(24 <= recording.snr <= 34 for recording in recordings)


@pytest.mark.parametrize("number", [1, 8, 31])
def test_who_carries_swings_the_arms_less_by_the_factor(number):
    """Than at the same speed without a load; the legs do what they did."""
    person = sim.draw_person(0, number)
    slower = dataclasses.replace(person, speed=0.9 * person.speed)
    plain, carrying = (through_a_cycle(one)[1] for one in (slower, CARRYING.of(person)))
    for segment in (sim.UPPER_ARM, sim.LOWER_ARM):
        np.testing.assert_allclose(angles(carrying, segment), 0.4 * angles(plain, segment), atol=1e-12)
        assert np.ptp(angles(plain, segment), axis=1).min() > 0.1
    for segment in (sim.THIGH, sim.SHANK, sim.FOOT):
        np.testing.assert_allclose(angles(carrying, segment), angles(plain, segment), atol=1e-12)


@pytest.mark.parametrize("number", [1, 8, 31])
def test_who_carries_leans_forward_by_eight_degrees_more(number):
    person = sim.draw_person(0, number)
    plain, carrying = (angles(through_a_cycle(one)[1], sim.TORSO) for one in (person, CARRYING.of(person)))
    np.testing.assert_allclose(plain - carrying, math.radians(8), atol=1e-12)  # from the vertical down: pi - lean


def test_who_carries_walks_at_nine_tenths_of_the_speed():
    """With the model's own cycle, which grows as 1 / sqrt(speed)."""
    for number in PEOPLE:
        person, recording = sim.draw_person(0, number), sim.Recording()
        cycles = [sim.cycle_seconds(one, recording) for one in (person, CARRYING.of(person))]
        assert cycles[1] == pytest.approx(cycles[0] / math.sqrt(0.9))
        torso = through_a_cycle(CARRYING.of(person))[0][sim.SEGMENT == sim.TORSO][0, 0]
        assert (torso[-1] - torso[0]) / cycles[1] == pytest.approx(0.9 * person.speed)


@pytest.mark.parametrize("number", PEOPLE)
def test_who_carries_stays_in_the_picture(number):
    greatest = speeds(CARRYING.of(sim.draw_person(0, number)), sim.Recording(pace=1.05)).max()
    assert 2 * greatest / sim.WAVELENGTH < doppler_axis(128)[0]


def test_a_load_echoes_as_a_sphere_that_rides_on_the_back():
    """Power pi r^2 from every side; on the spine's side away from the walk, as far as the torso is deep, and r."""
    loaded = CARRYING.of(sim.draw_person(0, 4))
    t = np.linspace(0, 1, 2001)
    for recording in (sim.Recording(), sim.Recording(phase=0.4, azimuth=0.7, elevation=0.1)):
        load = sim.echo(loaded, recording, t) - sim.echo(dataclasses.replace(loaded, load=0.0), recording, t)
        np.testing.assert_allclose(np.abs(load) ** 2, np.pi * 0.2**2, rtol=1e-9)
        centres, axes = sim.walk(loaded, recording, t)
        torso, spine = centres[sim.SEGMENT == sim.TORSO][0], axes[sim.SEGMENT == sim.TORSO][0]
        away = sim.load_centre(loaded, centres, axes) - torso
        np.testing.assert_allclose((away * spine).sum(0), 0, atol=1e-12)
        np.testing.assert_allclose(np.linalg.norm(away, axis=0), 0.2 + loaded.girth * loaded.height * 0.12 / 1.75)
        assert (away[0] < 0).all()
        flat = math.cos(recording.elevation)
        sight = [flat * math.cos(recording.azimuth), flat * math.sin(recording.azimuth), math.sin(recording.elevation)]
        nearing = np.diff(np.einsum("dn,d->n", torso + away, sight))
        phase = np.diff(np.unwrap(np.angle(load)))
        np.testing.assert_allclose(phase, 4 * np.pi / sim.WAVELENGTH * nearing, atol=1e-9)


def test_who_walks_past_the_radar_does_so_at_30_to_50_degrees():
    magnitudes = np.degrees([abs(recording.azimuth) for recording in drawn(OBLIQUE)])
    assert 30 <= magnitudes.min() < 32
    assert 48 < magnitudes.max() <= 50
    right = sum(recording.azimuth < 0 for recording in drawn(OBLIQUE))
    assert 120 < right < 190  # of 310: to both sides


@pytest.mark.parametrize("person", [1, 2, 3, 4, 5])
def test_an_oblique_torso_line_lies_at_2v_cos_over_lambda(person):
    """Of the model's walker, whose torso sways once per step; within one bin."""
    recording = dataclasses.replace(sim.draw_recording(0, person, 1, OBLIQUE)[0], unsteadiness=0)
    columns = round(sim.cycle_seconds(MODEL, recording) * sim.SAMPLE_RATE / HOP)
    brightest = clean_spectrogram(MODEL, recording)[:, :columns].argmax(0)
    along = math.cos(recording.azimuth) * math.cos(recording.elevation)
    doppler = 2 * MODEL.speed * recording.pace * along / sim.WAVELENGTH
    assert abs(doppler_axis(128)[brightest].mean() - doppler) < BIN


def test_a_noisy_recording_has_a_measured_snr_of_10_to_18_db():
    t = np.arange(10 * sim.PICTURE_SAMPLES) / sim.SAMPLE_RATE
    asked, measured = [], []
    for person in PEOPLE:
        recording, rng = sim.draw_recording(0, person, 1, NOISY)
        signal = sim.echo(sim.draw_person(0, person), recording, t)
        noise = sim.add_noise(signal, recording.snr, rng) - signal
        asked.append(recording.snr)
        measured.append(10 * np.log10(np.mean(np.abs(signal) ** 2) / np.mean(np.abs(noise) ** 2)))
    np.testing.assert_allclose(measured, asked, atol=0.2)
    assert 10 <= min(asked) < 11
    assert 17 < max(asked) <= 18
