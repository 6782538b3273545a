"""Synthetic faces: seven expressions drawn from facial action units, with nothing to download.

A face is a stack of soft-edged layers (hair, head, eyes, brows, nose, mouth) whose outlines are formulas over the
pixels of a batch. Action units (AU: the muscle movements of the Facial Action Coding System) bend those outlines;
identity, pose, light, camera and a hand in front of the face vary at random, independently of the emotion.

Face coordinates: x to the right, y down, the head about -1 to 1 in both, its mirror axis at x = 0. All lengths
below are in these units; grey values go from 0 (black) to 1 (white).
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from fer_lightning.data.faces import GENERIC_SPLITS, TEST, TRAIN, VAL, Faces, fingerprint
from fer_lightning.emotions import EMOTIONS
from fer_lightning.errors import UserError

Batch = npt.NDArray[np.float32]  # (N, 1, 1), a number per face, or (N, H, W), one per pixel
Units = dict[int, Batch]  # AU number -> intensity (N, 1, 1): 0 at rest, 1 at most

# The AUs of each prototype and their full intensity: Ekman and Friesen, EMFACS (1983); Ekman, Friesen and Hager,
# "FACS Investigator's Guide" (2002). Surprise has a slight 5 there (5B), so fear opens the lids further.
PROTOTYPES: dict[str, dict[int, float]] = {
    "angry": {4: 1.0, 5: 0.5, 7: 0.8, 23: 1.0},
    "disgust": {9: 1.0, 10: 0.6, 15: 0.6, 16: 0.6},
    "fear": {1: 1.0, 2: 0.5, 4: 0.6, 5: 1.0, 7: 0.3, 20: 1.0, 26: 0.3},
    "happy": {6: 1.0, 12: 1.0},
    "sad": {1: 1.0, 4: 0.6, 15: 1.0},
    "surprise": {1: 1.0, 2: 1.0, 5: 0.6, 26: 1.0},
    "neutral": {},
}
# Mouths also open in speech and laughter: probability, and the largest jaw drop (AU 26).
_SPEECH = {
    "happy": (0.7, 0.4),
    "angry": (0.4, 0.25),
    "disgust": (0.4, 0.25),
    "sad": (0.2, 0.2),
    "neutral": (0.2, 0.2),
}

_UNITS = sorted({au for prototype in PROTOTYPES.values() for au in prototype})
_PROTOTYPE = np.array([[PROTOTYPES[name].get(au, 0) for au in _UNITS] for name in EMOTIONS], np.float32)
_JAW = np.array([_SPEECH.get(name, (0, 0)) for name in EMOTIONS], np.float32)

_DRAWS = 128  # uniform numbers reserved per face; some are unused
_CHUNK = 16  # faces drawn together, so that a layer of them (150 kB) stays in a core's cache


class _Dice:
    """Source of uniform numbers, one per face and call, so the order of the calls is part of the data."""

    def __init__(self, unit: Batch) -> None:  # (N, _DRAWS) in [0, 1)
        self._columns = iter(unit.T[:, :, None, None])

    def between(self, low: float, high: float) -> Batch:
        """Return a uniform number in [low, high) per face."""
        drawn: Batch = low + (high - low) * next(self._columns)
        return drawn

    def chance(self, probability: float | Batch) -> Batch:
        """Return 1 with this probability, else 0, per face."""
        happens: Batch = (next(self._columns) < probability).astype(np.float32)
        return happens


def action_units(emotions: npt.NDArray[np.int64], dice: _Dice) -> Units:
    """Return the intensity of each AU per face: its prototype at random strength, plus a little of every AU."""
    full = _PROTOTYPE[emotions].T[:, :, None, None]  # (units, N, 1, 1)
    strength = dice.between(0.35, 1)
    units = {
        au: most * strength * dice.between(0.6, 1.15) + dice.between(0, 0.18)
        for au, most in zip(_UNITS, full, strict=True)
    }
    likely, most = _JAW[emotions].T[:, :, None, None]
    units[26] += dice.chance(likely) * most * dice.between(0.4, 1)
    return units


def brow_lift(au: Units) -> tuple[Batch, Batch, Batch]:
    """Return how far the brow's inner end, middle and outer end move down (negative: up).

    AU 1 raises the inner end, AU 2 the outer; AU 4 lowers and knits the brows, but only knits them if the inner end
    is raised.
    """
    lowered = au[4] * (1 - 0.8 * np.minimum(au[1], 1))
    inner = -0.19 * au[1] + 0.15 * lowered + 0.05 * au[9]
    outer = -0.17 * au[2] + 0.02 * lowered + 0.07 * au[1] * (1 - np.minimum(au[2], 1))
    return inner, 0.5 * (inner + outer) - 0.03 * au[2] + 0.03 * lowered, outer


def lid_arcs(au: Units) -> tuple[Batch, Batch]:
    """Return how far the upper lid arches up and the lower lid down, as fractions of the resting eye.

    AU 5 raises the upper lid, AU 7 tightens both, AUs 6 and 9 push the lower one up, past the eye's axis in a broad
    smile.
    """
    upper = 1 + 0.75 * au[5] - 0.3 * au[7] - 0.15 * au[6] - 0.3 * au[9] - 0.25 * au[15]
    lower = 0.75 + 0.2 * au[5] - 0.45 * au[7] - 0.95 * au[6] - 0.5 * au[9]
    return upper, lower


def mouth_shape(au: Units) -> tuple[Batch, Batch, Batch, Batch]:
    """Return the mouth's shape from the AUs.

    AU 10 raises the upper lip, AU 12 pulls the corners up and AU 15 down, AU 16 lowers the lower lip, AU 20
    stretches and AU 23 tightens the mouth, AU 26 drops the jaw, which parts the lips (AU 25).

    Returns:
        The mouth's width as a factor, how far its corners are below its middle, and how far the lips part up and
        down.
    """
    jaw = np.maximum(au[26] - 0.15, 0)  # a trace of AU 26 leaves the lips closed
    rounded, parted = jaw * np.maximum(1 - au[12] - au[20], 0), np.minimum(6 * jaw, 1)
    width = 1 + 0.3 * au[12] + 0.3 * au[20] - 0.2 * au[23] - 0.35 * rounded
    corner = -0.2 * au[12] + 0.17 * au[15] + 0.05 * au[20]
    up = 0.03 * parted + 0.07 * au[10] + 0.05 * rounded
    return width, corner, up, (0.04 + 0.05 * au[16]) * parted + 0.4 * jaw


def _blob(squared_distance: Batch) -> Batch:
    """Return a soft spot: 1 at distance 0, 0.44 at 1, 0 beyond 1.7; close to a Gaussian but cheaper."""
    spot: Batch = np.maximum(1 - squared_distance / 3, 0) ** 2
    return spot


class _Portraits:
    """N pictures in progress: each method adds a part of the face and may use attributes that earlier ones set."""

    def __init__(self, au: Units, dice: _Dice, size_px: int) -> None:
        self.au, self.between, self.chance = au, dice.between, dice.chance
        # Pose: image coordinates u (N, 1, W) and v (N, H, 1), rotated into those of the head.
        axis = (np.arange(size_px, dtype=np.float32) + 0.5) * (2 / size_px) - 1
        scale, tilt_rad = self.between(0.9, 1.18), np.deg2rad(self.between(-15, 15))
        self.u = (axis[None, None, :] + self.between(-0.14, 0.14)) / scale
        self.v = (axis[None, :, None] + self.between(-0.14, 0.1)) / scale
        self.x = np.cos(tilt_rad) * self.u + np.sin(tilt_rad) * self.v
        self.y = np.cos(tilt_rad) * self.v - np.sin(tilt_rad) * self.u
        # An edge is as wide as a pixel of a 48 px image, or wider if the camera is out of focus.
        self.edges_per_unit = 24 * scale / self.between(1, 2.2)

    def inside(self, distance: Batch) -> Batch:
        """Return the covered fraction of each pixel, given its signed distance to an outline (negative inside)."""
        covered: Batch = np.clip(0.5 - distance * self.edges_per_unit, 0, 1)
        return covered

    def paint(self, grey: Batch | float, coverage: Batch) -> None:
        """Blend a grey over the pictures with the given coverage, 0 to 1."""
        self.image += (grey - self.image) * coverage

    def head(self) -> None:
        """Draw the background, hair, neck and a head lit like an egg, then move x and y onto its front."""
        between, x, y, ax = self.between, self.x, self.y, np.abs(self.x)
        skin, fair = between(0.45, 0.88), between(0, 1)
        hair = np.where(self.chance(0.75), 0.06 + 0.3 * fair, 0.5 + 0.35 * fair) * (0.5 + 0.6 * skin)
        light_x, light_y = between(-0.7, 0.7), between(-0.7, 0.2)

        drop = mouth_shape(self.au)[3]  # an open mouth lengthens the face
        half_width, taper, half_height = between(0.68, 0.84), between(0.1, 0.24), between(0.98, 1.08) + 0.25 * drop
        ex = x / (half_width * (1 - taper * np.clip(y, -0.5, 1.2)))
        ey = (y + 0.02 - 0.3 * drop) / half_height
        radius2 = ex * ex + ey * ey
        egg = (np.sqrt(radius2) - 1) * half_width
        lit = 0.45 + 0.5 * np.sqrt(np.maximum(1 - radius2, 0.02)) + 0.35 * (light_x * ex + light_y * ey)

        # Strands fan out from the parting, and a sheen runs across them.
        parting, volume, length = between(-0.5, 0.5), between(0.04, 0.2), between(-0.5, 1.3)
        fan = (x - parting) / (y + 2)
        sheen = _blob(((y + 0.75 - 0.3 * ax) / 0.13) ** 2)
        waves = np.sin(between(25, 40) * fan + between(0, 6)) + np.sin(between(60, 90) * fan)
        hair = hair * (0.7 + 0.4 * lit + 0.06 * waves + 0.35 * sheen)
        haired = self.chance(0.92)

        self.image = between(0.1, 0.95) + between(-0.25, 0.25) * self.u + between(-0.2, 0.2) * self.v
        self.paint(0.75 * hair, haired * self.inside(np.maximum(egg - volume, y - length)))
        self.paint(0.55 * skin, self.inside(np.maximum(ax - 0.45, 0.7 - y)))  # neck
        self.paint(between(0.1, 0.9), self.inside(1.12 + 0.25 * ax - y))  # clothes
        ear = np.sqrt(((ax - half_width) / 0.1) ** 2 + ((y - 0.02) / 0.2) ** 2) - 1
        self.paint(0.7 * skin * (0.3 + lit), self.inside(0.1 * ear))
        face = self.inside(egg)
        self.paint(skin * lit, face)
        beard = np.clip(5 * (y - 0.28 - between(-0.05, 0.1) + 0.5 * ax * ax), 0, 1) * face
        self.paint(0.9 * np.minimum(hair, skin), self.chance(0.2) * between(0.35, 0.8) * beard)

        line = between(-0.85, -0.62) + between(0.1, 0.9) * (x - parting) ** 2 + between(0, 0.03) * waves
        self.fringe = haired * self.inside(np.maximum(y - np.minimum(line, 0), egg - volume))
        self.dark, self.skin, self.lit = 0.35 * skin, skin, np.minimum(1.25 * skin, 1)
        self.hair, self.light_x = hair, light_x
        # Turning the head shifts its features across the outline, most in the middle and less towards the rim.
        self.yaw_frac = between(-0.2, 0.2)
        self.x = x + self.yaw_frac * (1 - 0.6 * np.minimum(ex * ex, 1))
        self.y = y + between(-0.08, 0.08) * (1 - 0.6 * np.minimum(ey * ey, 1))
        self.ax = np.abs(self.x)  # folds the two halves of the face into one

    def eyes(self) -> None:
        """Draw the sockets, eyes, lids and the cheeks that AU 6 raises."""
        between, y, ax, dark = self.between, self.y, self.ax, self.dark
        eye_x, eye_y = between(0.33, 0.41), between(-0.24, -0.16)
        half_width, height = between(0.17, 0.22), between(0.09, 0.125)
        t = (ax - eye_x) / half_width  # -1 at the inner corner, 1 at the outer
        arc, axis = 1 - t * t, eye_y + between(-0.03, 0.02) * t
        upper_arc, lower_arc = lid_arcs(self.au)
        upper = axis - height * np.maximum(upper_arc - between(0, 0.25), 0.25) * arc
        lower = axis + height * lower_arc * arc
        socket = _blob(((ax - eye_x) / 0.26) ** 2 + ((y - eye_y + 0.05) / 0.18) ** 2)
        self.paint(0.5 * self.skin, between(0.15, 0.45) * socket)

        opening = self.inside(np.maximum(upper - y, y - lower))
        self.paint(np.minimum(0.5 * self.skin + 0.5, 0.97), opening)
        gaze = between(-0.06, 0.06) * np.where(self.x < 0, -1, 1).astype(np.float32)
        px, py = ax - eye_x - gaze, y - eye_y + between(-0.01, 0.04)
        centre = np.sqrt(px * px + py * py)
        self.paint(between(0.08, 0.38), opening * self.inside(centre - 0.1))
        self.paint(0.02, opening * self.inside(centre - 0.045))
        self.paint(1.0, opening * self.inside(np.sqrt((px + 0.03) ** 2 + (py + 0.035) ** 2) - 0.024))

        beyond = (np.abs(t) - 1.08) * half_width
        self.paint(0.5 * dark, self.inside(np.maximum(np.abs(y - upper) - between(0.012, 0.035), beyond)))
        for line in (upper - 0.06, lower):  # the lid's crease and the lower lid
            self.paint(dark, 0.5 * self.inside(np.maximum(np.abs(y - line) - 0.009, beyond)))
        cheek = _blob(((ax - 0.45) / 0.18) ** 2 + ((y - 0.15) / 0.12) ** 2)
        self.paint(self.lit, np.minimum(0.6 * self.au[6], 0.6) * cheek)
        self.eye_x, self.eye_y, self.eye_half_width = eye_x, eye_y, half_width

    def brows(self) -> None:
        """Draw the brows, forehead lines (AU 1 with 2) and the furrows between the brows (AU 4)."""
        between, au, y, ax = self.between, self.au, self.y, self.ax
        brow_y, thickness, arch = self.eye_y - between(0.2, 0.28), between(0.025, 0.06), between(0.02, 0.1)
        inner_x = between(0.13, 0.19) - 0.06 * au[4]
        length = self.eye_x + 1.15 * self.eye_half_width - inner_x
        t = (ax - inner_x) / length  # 0 at the inner end, 1 at the outer
        inner_dy, middle_dy, outer_dy = brow_lift(au)
        bezier = (1 - t) * ((1 - t) * inner_dy + 2 * t * (middle_dy - arch)) + t * t * outer_dy
        across, along = np.abs(y - brow_y - bezier) - thickness * (1.15 - 0.6 * t), np.abs(t - 0.5) - 0.5
        brow = np.maximum(across, along * length)
        self.paint(np.minimum(0.8 * self.hair, 0.65 * self.skin), between(0.75, 1) * self.inside(brow))
        lines = np.maximum(np.sin(42 * y), 0) * _blob((self.x / 0.4) ** 2 + ((y - brow_y + 0.25) / 0.15) ** 2)
        self.paint(self.dark, 0.5 * np.minimum(au[1] * (0.3 + au[2]), 1) * lines)
        furrows = _blob(((ax - 0.055) / 0.028) ** 2 + ((y - brow_y - 0.03) / 0.12) ** 2)
        self.paint(self.dark, np.minimum(0.8 * au[4], 1) * furrows)

    def nose(self) -> None:
        """Draw the nose, which protrudes and so turns further than the face; AU 9 lifts and wrinkles it."""
        between, au, y, dark = self.between, self.au, self.y, self.dark
        nose_y, half_width = between(0.14, 0.24) - 0.05 * au[9] - 0.02 * au[10], between(0.12, 0.17)
        x = self.x + 0.4 * self.yaw_frac
        ax = np.abs(x)
        shaded = (x + 0.08 * np.sign(self.light_x)) / 0.07
        self.paint(dark, between(0.2, 0.5) * _blob(shaded * shaded + ((y - nose_y + 0.15) / 0.16) ** 2))
        self.paint(self.lit, 0.4 * _blob((x / 0.06) ** 2 + ((y - nose_y + 0.06) / 0.08) ** 2))
        wing = 0.06 * np.sqrt(((ax - 0.75 * half_width) / 0.06) ** 2 + ((y - nose_y + 0.02) / 0.07) ** 2) - 0.06
        self.paint(dark, 0.6 * self.inside(np.maximum(np.abs(wing) - 0.012, 0.75 * half_width - ax)))
        nostril = 0.03 * np.sqrt(((ax - 0.07) / 0.05) ** 2 + ((y - nose_y - 0.02) / 0.025) ** 2) - 0.03
        self.paint(0.5 * dark, 0.85 * self.inside(nostril))
        wrinkles = np.maximum(np.sin(48 * (y + 0.5 * ax)), 0)
        wrinkles *= _blob((x / 0.15) ** 2 + ((y - self.eye_y - 0.05) / 0.15) ** 2)
        self.paint(dark, np.minimum(0.9 * au[9], 1) * wrinkles)
        self.nose_y, self.nose_half_width = nose_y, half_width

    def mouth(self) -> None:
        """Draw lips, teeth, tongue, and the folds from the nose around the corners of the mouth."""
        between, au, x, y, ax, dark = self.between, self.au, self.x, self.y, self.ax, self.dark
        width, corner_dy, up, down = mouth_shape(au)
        mouth_y, half_width = between(0.5, 0.6), between(0.27, 0.34) * width
        tight = 1 - 0.7 * np.minimum(au[23], 1)
        upper_lip, lower_lip = between(0.03, 0.06) * tight, between(0.045, 0.085) * tight
        s = x / half_width  # -1 and 1 at the corners
        beyond = (np.abs(s) - 1) * half_width
        arc = np.sqrt(np.maximum(1 - s * s, 0))
        line = mouth_y + corner_dy * (s * s - 0.4) + between(-0.03, 0.03) * s
        top, bottom = line - up * arc, line + down * arc

        rise = (y - self.nose_y) / (mouth_y + corner_dy - self.nose_y + 0.12)  # 0 at the nose, 1 below the corner
        reach = self.nose_half_width + 0.05 + (half_width + 0.08 - self.nose_half_width) * rise * (1.6 - 0.6 * rise)
        fold = _blob(((ax - reach) / 0.05) ** 2) * _blob(((rise - 0.4) / 0.35) ** 2)
        depth = np.minimum(between(0.05, 0.25) + 0.35 * au[12] + 0.4 * au[10] + 0.4 * au[9], 0.75)
        self.paint(dark, depth * fold)
        self.paint(dark, 0.35 * _blob((x / 0.24) ** 2 + ((y - bottom - lower_lip - 0.05) / 0.05) ** 2))

        bow = 0.3 * _blob((x / 0.06) ** 2)  # Cupid's bow
        lips = np.maximum(top - upper_lip * (arc - bow) - y, y - bottom - lower_lip * arc)
        self.paint(self.skin * between(0.6, 0.82), self.inside(np.maximum(lips, beyond)))
        gap = np.maximum(top - y, y - bottom)
        self.paint(0.06, self.inside(np.maximum(gap - 0.014, beyond)))
        cavity = self.inside(np.maximum(gap, beyond))
        self.paint(0.35, cavity * _blob((x / 0.18) ** 2 + ((y - bottom) / 0.09) ** 2))  # the tongue
        self.paint(0.92, cavity * self.inside(y - top - np.minimum(0.1, 0.75 * (up + down))))  # the upper teeth
        self.paint(0.7 * dark, 0.7 * _blob((beyond / 0.05) ** 2 + ((y - line) / 0.05) ** 2))

    def cover(self) -> None:
        """Draw what is in front of the face: a fringe, glasses, three fingers of a hand."""
        between, u, v = self.between, self.u, self.v
        self.paint(self.hair, self.fringe)
        gx, gy = (self.ax - self.eye_x) ** 2, (self.y - self.eye_y - 0.02) ** 2
        rim = np.abs(np.sqrt(np.sqrt(gx * gx + 1.8 * gy * gy)) - 0.235)
        bridge = np.maximum(np.abs(self.y - self.eye_y + 0.04), self.ax - self.eye_x + 0.22)
        self.paint(between(0.05, 0.3), self.chance(0.2) * self.inside(np.minimum(rim, bridge) - 0.014))

        # Fingers reach in from the rim towards the middle: p across them, q along them, positive outwards.
        side = between(0, 2 * np.pi)
        reach, bend = between(0.35, 0.9), side + between(-0.5, 0.5)
        du, dv = u - reach * np.cos(side), v - reach * np.sin(side)
        p, q = np.cos(bend) * dv - np.sin(bend) * du, np.cos(bend) * du + np.sin(bend) * dv
        finger = 0.19 * np.clip(np.rint(p / 0.19), -1, 1)
        across = np.sqrt((p - finger) ** 2 + np.minimum(q - 1.5 * finger * finger, 0) ** 2)
        self.paint(self.skin * (1 - 2.5 * across), self.chance(0.3) * self.inside(across - 0.11))

    def develop(self, noise: Batch) -> npt.NDArray[np.uint8]:
        """Apply uneven light, exposure and sensor noise (standard normal, (N, H, W)); return uint8 (N, H, W)."""
        between = self.between
        image = self.image * (1 + between(-0.3, 0.3) * self.u + between(-0.2, 0.2) * self.v)
        image = between(0.7, 1.3) * (image - 0.48) + between(0.42, 0.65) + between(0.008, 0.04) * noise
        pixels: npt.NDArray[np.uint8] = np.rint(255 * np.clip(image, 0, 1)).astype(np.uint8)
        return pixels


def draw_faces(
    rngs: Sequence[np.random.Generator], emotions: npt.NDArray[np.int64], size_px: int = 48
) -> npt.NDArray[np.uint8]:
    """Draw one face per generator, which determines everything except the emotion.

    Args:
        rngs: N generators.
        emotions: int64 (N,), indices into emotions.EMOTIONS.
        size_px: height and width in pixels. A face is the same at every size, except for the noise.

    Returns:
        uint8 (N, size_px, size_px).
    """
    dice = _Dice(np.stack([rng.random(_DRAWS, dtype=np.float32) for rng in rngs]))
    portraits = _Portraits(action_units(emotions, dice), dice, size_px)
    portraits.head()
    portraits.eyes()
    portraits.brows()
    portraits.nose()
    portraits.mouth()
    portraits.cover()
    return portraits.develop(np.stack([rng.standard_normal((size_px, size_px), np.float32) for rng in rngs]))


def synthetic_faces(n_train: int = 5600, n_val: int = 700, n_test: int = 700, seed: int = 0) -> Faces:
    """Draw a dataset with alternating classes, so that the class sizes of a split differ by one at most.

    Args:
        n_train: number of training faces.
        n_val: number of validation faces.
        n_test: number of test faces.
        seed: 0 or more. A face depends only on the seed, its split and its number in the split, so that changing
            the size of a split adds or removes faces at its end and changes no others.

    Returns:
        48x48 faces with ids "synthetic:train:0" and so on.

    Raises:
        UserError: a number of faces or the seed is negative.
    """
    for name, value in (("n_train", n_train), ("n_val", n_val), ("n_test", n_test), ("seed", seed)):
        if value < 0:
            raise UserError(f"data.{name}={value}: expected at least 0.")
    sizes = (n_train, n_val, n_test)
    usage = np.repeat(np.array([TRAIN, VAL, TEST], np.uint8), sizes)
    number = np.concatenate([np.arange(size) for size in sizes])
    labels = number % len(EMOTIONS)
    images = np.empty((len(labels), 48, 48), np.uint8)
    for start in range(0, len(labels), _CHUNK):
        part = slice(start, start + _CHUNK)
        keys = zip(usage[part].tolist(), number[part].tolist(), strict=True)
        images[part] = draw_faces([np.random.default_rng((seed, *key)) for key in keys], labels[part])
    return Faces(
        images=images,
        labels=labels,
        usage=usage,
        ids=[f"synthetic:{GENERIC_SPLITS[split]}:{i}" for split, i in zip(usage, number, strict=True)],
        dataset="synthetic",
        source=f"the built-in generator (seed {seed})",
        fingerprint=fingerprint(images, labels, usage),
        split_names=GENERIC_SPLITS,
    )
