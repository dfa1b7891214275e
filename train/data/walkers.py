"""The built-in data set: micro-Doppler pictures of simulated walkers.

A walker is the kinematic model of
    Boulic, Magnenat-Thalmann and Thalmann, "A global human walking model with real-time kinematic
    personification", The Visual Computer 6 (1990) 344-358,
seen by a radar as in Chen, "The Micro-Doppler Effect in Radar" (2011), the section on the walking human.
The numbers are those of the MATLAB code published with Chen's book. Where this file departs from them:
  * curves through control points are cubics, level at every point (`pchip` there), also for the pelvis' tilt;
  * translations are in hip heights (metres there), and the hip's height includes the foot;
  * limbs swing in the walking direction while pelvis and thorax turn: only the joints turn with them;
  * the wave is plane and has no 1/R^4 loss: the walker stays far away.
As in the model, nothing pins the standing foot to the ground: it slides forward.

The same people are seen under other conditions too (CONDITIONS), in recordings that the built-in data set has not:
what a classifier has learned of them may not hold there.

Shapes: `N` times, `S` scatterers. Axes: x ahead, y left, z up.
"""

import math
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

WAVELENGTH = 299_792_458 / 24e9  # m, of a 24 GHz radar
SAMPLE_RATE = 1408  # Hz; -1/4 to 3/4 of it are shown, -2.2 to 6.6 m/s, as everybody walks towards the radar
WINDOW = 64  # samples (45 ms) of one spectrum: bins of 22 Hz = 0.14 m/s
PICTURE_SECONDS = 1.6  # about three steps
PICTURE_SAMPLES = round(PICTURE_SECONDS * SAMPLE_RATE)
PICTURES_PER_RECORDING = 10  # one after the other, without overlap
UNSTEADY_SECONDS = 7  # period of the walker's changes of speed
DYNAMIC_RANGE = 45  # dB below a picture's maximum that are still shown

# Scatterers: one ellipsoid in the middle of each body segment, its size in body heights. Lengths are Chen's;
# so are the radii (given in m at a height of 1.75 m), but for the torso, which is broader than deep.
HEAD, TORSO, UPPER_ARM, LOWER_ARM, THIGH, SHANK, FOOT = range(7)
LENGTH = np.array([0.130, 0.288, 0.188, 0.152, 0.245, 0.246, 0.143])
DEPTH = np.array([0.10, 0.12, 0.06, 0.05, 0.07, 0.06, 0.05]) / 1.75
BREADTH = np.array([0.10, 0.20, 0.06, 0.05, 0.07, 0.06, 0.05]) / 1.75
SEGMENT = np.array([HEAD, TORSO, *np.repeat([UPPER_ARM, LOWER_ARM, THIGH, SHANK, FOOT], 2)])  # right, left
SHOULDER, HIP = 0.259 / 2, 0.191 / 2  # half widths, in body heights
HIP_HEIGHT = 0.530  # the paper's Ht, ground to hip, in body heights


@dataclass(frozen=True)
class Person:
    """What stays the same from one recording of a person to the next. Gains multiply the model's angles."""

    height: float  # m
    speed: float  # m/s, preferred
    cycle: float  # gain on the model's cycle duration at that speed
    hip: float
    knee: float
    ankle: float
    arm: float
    elbow: float
    sway: float  # gain on the body's forward and backward sway
    lean: float  # rad, forward
    asymmetry: float  # the left limbs swing by 1 + asymmetry, the right ones by 1 - asymmetry
    limp: float  # cycles by which the left step is late
    girth: float  # gain on every radius
    reflectivity: tuple[float, ...]  # dB, by segment: clothes and shoes
    load: float = 0.0  # m, radius of a backpack, which echoes as a sphere; 0: none


@dataclass(frozen=True)
class Recording:
    """What differs between recordings of one person."""

    phase: float = 0.0  # cycles, at t = 0
    pace: float = 1.0  # speed / preferred speed
    unsteadiness: float = 0.0  # greatest relative deviation from that speed
    azimuth: float = 0.0  # rad, between the walking direction and the radar
    elevation: float = 0.0  # rad, of the radar above the horizon
    snr: float = math.inf  # dB, signal / noise power before the STFT


@dataclass(frozen=True)
class Condition:
    """In what the recordings of the same people differ; the values here are those of the built-in data set."""

    stream: tuple[int, ...] = ()  # of random numbers: two conditions have no recording in common
    arm: float = 1.0  # factor on the swing of arms and elbows
    speed: float = 1.0  # factor on the preferred speed
    lean: float = 0.0  # rad, added to the person's
    load: float = 0.0  # m, radius of the backpack
    aside: float = 0.0  # degrees added to the azimuth's magnitude, which is else up to 20
    snr: tuple[float, float] = (24, 34)  # dB, the range

    def of(self, person: Person) -> Person:
        """The person under this condition."""
        return replace(person, arm=self.arm * person.arm, elbow=self.arm * person.elbow,
                       speed=self.speed * person.speed, lean=self.lean + person.lean, load=self.load)  # fmt: skip


# Who carries a backpack leans forward (Attwells et al., Ergonomics 49 (2006) 1527-1537) and walks more slowly ("The
# effect of backpack weight on gait parameters", in Karwowski and Salvendy (2010), ISBN 9781439834992). How much, the
# pack's size, and hands that hold its straps, so that the arms swing little, are choices; so are the other conditions.
PLAIN = Condition()
CONDITIONS = {
    "plain": PLAIN,
    "carrying": Condition(stream=(1,), arm=0.4, speed=0.9, lean=math.radians(8), load=0.2),
    "oblique": Condition(stream=(2,), aside=30),
    "noisy": Condition(stream=(3,), snr=(10, 18)),
}


def draw_person(seed: int, person: int) -> Person:
    """Person number `person`, from 1. The ranges are so narrow that only a network tells people apart."""
    u = np.random.default_rng([seed, person]).uniform
    return Person(
        height=u(1.50, 1.95), speed=u(1.05, 1.48), cycle=u(0.88, 1.12), hip=u(0.90, 1.04), knee=u(0.80, 1.08),
        ankle=u(0.8, 1.2), arm=u(0.5, 1.7), elbow=u(0.5, 1.4), sway=u(0.6, 1.4), lean=u(0, 0.07),
        asymmetry=u(-0.10, 0.10), limp=u(-0.03, 0.03), girth=u(0.85, 1.15),
        reflectivity=tuple(u(-4, 4, size=len(LENGTH)).tolist()),
    )


def draw_recording(
    seed: int, person: int, recording: int, condition: Condition = PLAIN
) -> tuple[Recording, np.random.Generator]:
    """Recording number `recording`, from 1, and the generator that then makes its noise."""
    # Numbers from 1, and so are streams: a seed that ends in 0 would be that without the 0.
    rng = np.random.default_rng([seed, person, recording, *condition.stream])
    u = rng.uniform
    phase, pace, unsteadiness, azimuth = u(0, 1), u(0.95, 1.05), u(0, 0.03), u(-20, 20)
    return Recording(
        phase=phase, pace=pace, unsteadiness=unsteadiness,
        azimuth=math.radians(azimuth + math.copysign(condition.aside, azimuth)),
        elevation=math.radians(u(0, 8)), snr=u(*condition.snr),
    ), rng  # fmt: skip


def relative_speed(person: Person, recording: Recording) -> float:
    """The paper's RV, in hip heights per second."""
    return person.speed * recording.pace / (HIP_HEIGHT * person.height)


def cycle_seconds(person: Person, recording: Recording) -> float:
    """Tc = Rc / RV with the relative cycle length Rc = 1.346 sqrt(RV), times the person's gain."""
    return person.cycle * 1.346 / math.sqrt(relative_speed(person, recording))


def curve(points, phase: np.ndarray) -> np.ndarray:
    """A smooth function of the phase (cycles) with period 1 through `points` ((phase, value), ...)."""
    x, y = np.array(sorted((x % 1, y) for x, y in points)).T
    x = np.concatenate([x[-1:] - 1, x, x[:1] + 1])
    y = np.concatenate([y[-1:], y, y[:1]])
    at = phase % 1
    left = np.searchsorted(x, at, side="right") - 1
    u = (at - x[left]) / (x[left + 1] - x[left])
    return y[left] + (y[left + 1] - y[left]) * u * u * (3 - 2 * u)


def joint_angles(rv: float, support: float, phase: np.ndarray) -> tuple[np.ndarray, ...]:
    """Flexion (rad) at hip, knee, ankle, shoulder and elbow of the limbs whose heel strikes at phase 0.

    The paper's control points for 0.5 <= RV <= 3, `support` = Ds / Tc. Its gaits "b" and "c" (below and above
    RV = 1.3) are one formula here: `slow` and `fast` say how far into the first and second range RV is.
    """
    if not 0.5 <= rv <= 3:
        raise ValueError(f"relative speed {rv:.2f}/s is outside 0.5 ... 3, where these curves hold")
    slow, fast = np.clip([(rv - 0.5) / 0.8, (rv - 1.3) / 1.7], 0, 1)
    hip = [(0.2 * fast - 0.1, 25 + 5 * fast), (0.5, -15), (0.9, 25 + 6 * fast)]
    knee = [(0.17 - 0.05 * fast, 3 + 22 * fast), (0.4, 3), (0.75 - 0.05 * fast, 70 - 5 * fast),
            (1 - 0.03 * fast, 3 + 3 * fast)]
    ankle = [(0, -3 + 5 * fast), (0.08, -18 + 4 * fast), (0.5 - 0.1 * fast, 8 - 3 * fast),
             (support, -20 - 8 * fast), (0.85, -3 + 5 * fast)]
    elbow = [(0.05, 6 + 8 * slow - 6 * fast), (0.5 + 0.01 * slow + 0.04 * fast, 20 + 24 * slow + 26 * fast),
             (0.9 - 0.1 * fast, 8 + 9 * slow - 6 * fast)]
    shoulder = 3 - 9.88 * rv * (0.5 + np.cos(2 * np.pi * phase))
    hip, knee, ankle, elbow = (curve(points, phase) for points in (hip, knee, ankle, elbow))
    return tuple(np.radians(angle) for angle in (hip, knee, ankle, shoulder, elbow))


def walk(person: Person, recording: Recording, t: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centres (m) and unit axes of the S scatterers at the times t (s): two arrays S x 3 x N."""
    rv, tc = relative_speed(person, recording), cycle_seconds(person, recording)
    ht, length = HIP_HEIGHT * person.height, LENGTH * person.height
    support = (0.752 * tc - 0.143) / tc
    turn = 2 * np.pi / UNSTEADY_SECONDS
    t = t + recording.unsteadiness / turn * np.sin(turn * t + 2 * np.pi * recording.phase)  # uneven time
    phase = recording.phase + t / tc  # N, of the right leg
    wave = 2 * np.pi * phase
    side = np.array([[-1.0], [1.0]])  # right, left: their y
    limb = phase + np.array([[0.0], [0.5 - person.limp]])  # 2 x N, each limb's own phase
    hip, knee, ankle, shoulder, elbow = joint_angles(rv, support, limb)
    swing = 1 + side * person.asymmetry
    hip, knee, ankle = person.hip * swing * hip, person.knee * swing * knee, person.ankle * ankle
    shoulder, elbow = person.arm * swing * shoulder, person.elbow * swing * elbow

    # The origin of the spine (the paper's three translations, in hip heights) and its rotations.
    pelvis = ht * np.stack([
        rv * t - person.sway * 0.021 * np.sin(2 * wave + 4 * np.pi * (0.625 - support)),
        -0.032 * np.sin(wave - 0.2 * np.pi),
        0.015 * rv * (np.sin(2 * wave - 0.7 * np.pi) - 1),
    ])  # 3 x N
    lean = person.lean + np.radians(2) * (1 - np.sin(2 * wave - 0.2 * np.pi))
    torsion = np.radians(-4 * rv) * np.cos(wave)  # of the pelvis, > 0: left ahead; the striking leg's hip is
    thorax = np.radians(rv / 3) * curve([(0.1, 4), (0.4, -4.5), (0.6, -4), (0.9, 4.5)], phase)
    tilt = np.radians(1.66 * rv) * curve([(0, 0), (0.15, -2), (0.5, 0), (0.65, 2)], phase)  # > 0: left hip up

    def along(angle: np.ndarray) -> np.ndarray:
        """Unit vectors, downwards at angle 0 and forwards at pi / 2: 3 x ... x N."""
        return np.stack([np.sin(angle), np.zeros_like(angle), -np.cos(angle)])

    def beside(half: float, yaw: np.ndarray, roll: np.ndarray) -> np.ndarray:
        """The right and left joint, `half` a width from the spine: 3 x 2 x N."""
        return half * person.height * side * np.stack([np.sin(yaw), np.cos(yaw), np.sin(roll)])[:, None]

    spine = -along(-lean)  # 3 x N, upwards
    neck = pelvis + length[TORSO] * spine
    hips = pelvis[:, None] + beside(HIP, torsion, tilt)  # 3 x 2 x N
    shoulders = neck[:, None] + beside(SHOULDER, thorax, np.zeros_like(thorax))
    upper_arm, lower_arm = along(shoulder), along(shoulder + elbow)
    thigh, shank, foot = along(hip), along(hip - knee), along(hip - knee + ankle + np.pi / 2)
    elbows, knees = shoulders + length[UPPER_ARM] * upper_arm, hips + length[THIGH] * thigh
    ankles = knees + length[SHANK] * shank

    def join(trunk: list, limbs: list) -> np.ndarray:
        """S x 3 x N for the scatterers in order, from two 3 x N and five 3 x 2 x N."""
        return np.concatenate([trunk, np.stack(limbs).swapaxes(1, 2).reshape(-1, 3, len(t))])

    axes = join([spine, spine], [upper_arm, lower_arm, thigh, shank, foot])
    starts = join([neck, pelvis], [shoulders, elbows, hips, knees, ankles])
    return starts + length[SEGMENT, None, None] / 2 * axes, axes


def ellipsoid_rcs(a, b, c, cosine):
    """Radar cross-section (m^2) of an ellipsoid with half axes a (deep), b (broad) and c (long), all m.

    Chen's formula for a line of sight between the axes a and c, at an angle of `cosine` to c:
    pi a^2 b^2 c^2 / (a^2 sin^2 + c^2 cos^2)^2.
    """
    return np.pi * (a * b * c / (a**2 * (1 - cosine**2) + (c * cosine) ** 2)) ** 2


def load_centre(person: Person, centres: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """The centre (m) of the backpack, a sphere that touches the middle of the back: 3 x N."""
    torso, (x, y, z) = SEGMENT == TORSO, axes[SEGMENT == TORSO][0]  # the spine, which never bends sideways
    behind = person.girth * DEPTH[TORSO] * person.height + person.load
    return centres[torso][0] - behind * np.stack([z, y, -x])


def echo(person: Person, recording: Recording, t: np.ndarray) -> np.ndarray:
    """Baseband signal without noise: sum over k of sqrt(rcs_k) exp(-j 4 pi R_k / lambda), N complex.

    Nothing hides what is behind it, not even the torso the backpack.
    """
    centres, axes = walk(person, recording, t)
    azimuth, elevation = recording.azimuth, recording.elevation
    ahead, left = math.cos(azimuth) * math.cos(elevation), math.sin(azimuth) * math.cos(elevation)
    sight = np.array([ahead, left, math.sin(elevation)])

    def phasor(centres: np.ndarray) -> np.ndarray:
        distance = -np.einsum("...dn,d->...n", centres, sight)  # plane wave: R_k up to a constant
        return np.exp(-4j * np.pi / WAVELENGTH * distance)

    depth, breadth, length = person.height * np.stack([DEPTH, BREADTH, LENGTH])[:, SEGMENT, None]
    cosine = np.einsum("sdn,d->sn", axes, sight)
    rcs = ellipsoid_rcs(person.girth * depth, person.girth * breadth, length / 2, cosine)
    gain = 10 ** (np.array(person.reflectivity)[SEGMENT, None] / 20)
    load = math.sqrt(math.pi) * person.load * phasor(load_centre(person, centres, axes))  # a sphere's is pi r^2
    return (gain * np.sqrt(rcs) * phasor(centres)).sum(0) + load


def add_noise(signal: np.ndarray, snr: float, rng: np.random.Generator) -> np.ndarray:
    """`signal` with complex white noise, `snr` dB below the signal's mean power."""
    scale = math.sqrt(np.mean(np.abs(signal) ** 2) * 10 ** (-snr / 10) / 2)
    return signal + scale * (rng.standard_normal(len(signal)) + 1j * rng.standard_normal(len(signal)))


def spectrogram(signal: np.ndarray, starts: np.ndarray, resolution: int) -> np.ndarray:
    """Power of the short-time Fourier transform, resolution x len(starts); a tone of amplitude A has A^2.

    Hann windows begin at the samples `starts`. More rows than WINDOW: zero padding; fewer: averages.
    """
    hann = np.sin(np.pi * (np.arange(WINDOW) + 0.5) / WINDOW) ** 2
    frames = signal[starts[:, None] + np.arange(WINDOW)] * (hann / hann.sum())
    n = resolution * math.ceil(WINDOW / resolution)
    power = np.roll(np.abs(np.fft.fft(frames, n)) ** 2, n // 4, axis=1)  # -1/4 ... 3/4 of SAMPLE_RATE
    return power.reshape(len(starts), resolution, -1).mean(2).T[::-1]


def jet(x: np.ndarray) -> np.ndarray:
    """The usual colour map, x from 0 (dark blue) to 1 (dark red), as uint8 RGB in a new last axis."""
    ramps = 1.5 - np.abs(4 * x[..., None] - np.array([3.0, 2.0, 1.0]))
    return np.uint8(np.clip(ramps, 0, 1) * 255 + 0.5)


def picture(power: np.ndarray) -> np.ndarray:
    """Power (any unit) as an RGB picture; colours show dB below its maximum, down to DYNAMIC_RANGE."""
    decibel = 10 * np.log10(np.maximum(power / power.max(), 1e-30))
    return jet(np.clip(1 + decibel / DYNAMIC_RANGE, 0, 1))


def pictures_of_recording(
    seed: int, person: int, recording: int, resolution: int = 128, condition: Condition = PLAIN
):  # fmt: skip
    """Yields the pictures of one recording, resolution x resolution x 3 uint8 each."""
    walker = condition.of(draw_person(seed, person))
    drawn, rng = draw_recording(seed, person, recording, condition)
    t = np.arange(PICTURE_SAMPLES + WINDOW) / SAMPLE_RATE
    columns = np.arange(resolution) * PICTURE_SAMPLES // resolution
    for number in range(PICTURES_PER_RECORDING):
        signal = echo(walker, drawn, t + number * PICTURE_SECONDS)
        yield picture(spectrogram(add_noise(signal, drawn.snr, rng), columns, resolution))


def simulate(people, images_per_user: int, resolution: int = 128, seed: int = 0, condition: Condition = PLAIN):
    """Yields (folder, file name, picture) for the person numbers `people`, each counted from 1.

    A picture depends on seed, person, recording, resolution and condition, not on how many others are made.
    """
    for person in people:
        for first in range(0, images_per_user, PICTURES_PER_RECORDING):
            recording = first // PICTURES_PER_RECORDING + 1
            images = pictures_of_recording(seed, person, recording, resolution, condition)
            for number, image in enumerate(islice(images, images_per_user - first)):
                yield f"ID{person}", f"rec{recording:02d}_{number:02d}.png", image
