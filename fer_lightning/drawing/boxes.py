"""Draw a box and a label for each face of a photo."""

from collections.abc import Iterable
from itertools import chain

from PIL import Image, ImageDraw, ImageFont

from fer_lightning.emotions import colours
from fer_lightning.inference.faces import Box, DetectedFace, overlap

_LEGIBLE = 384  # px; minimum longer side at which labels fit


def annotate(photo: Image.Image, faces: Iterable[DetectedFace]) -> Image.Image:
    """Return a copy of the photo with a box, an emotion and a confidence for each face; small photos are enlarged.

    The id of a video's face precedes its emotion. If the emotion is in doubt, the label says why, without a colour.

    White lines edged in black and white text on black are legible on any photo. The emotion's colour always
    accompanies its name.
    """
    zoom = max(1, _LEGIBLE // max(photo.size))
    drawn = photo.resize((photo.width * zoom, photo.height * zoom), Image.Resampling.NEAREST)
    canvas = ImageDraw.Draw(drawn)
    longer = max(drawn.size)
    line = max(1, round(longer / 500))
    taken: list[Box] = []
    for face in sorted(faces, key=lambda face: face.box[1]):
        x, y, width, height = (zoom * pixels for pixels in face.box)
        corners = (x, y, x + width - 1, y + height - 1)
        for colour, inset, thickness in (
            ("black", 0, line),
            (_colour(face), line, 2 * line),
            ("white", 3 * line, line),
            ("black", 4 * line, line),
        ):
            _frame(canvas, corners, inset, colour, thickness)
        font = ImageFont.load_default(min(max(width / 8, longer / 60, 11), longer / 20))
        taken.append(_label(canvas, face, (x, y, height), font, taken, drawn.size))
    return drawn


def _frame(
    canvas: ImageDraw.ImageDraw, corners: tuple[int, int, int, int], inset: int, colour: str, line: int
) -> None:
    left, top, right, bottom = corners
    if right - left > 2 * inset and bottom - top > 2 * inset:
        canvas.rectangle((left + inset, top + inset, right - inset, bottom - inset), outline=colour, width=line)


def _label(
    canvas: ImageDraw.ImageDraw,
    face: DetectedFace,
    at: tuple[int, int, int],
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    taken: list[Box],
    size: tuple[int, int],
) -> Box:
    """Draw a face's label above its box at (x, y, height), or wherever there is room; return the label's box."""
    number = "" if face.id is None else f"{face.id}: "
    text = number + (face.doubt or f"{face.emotion} {face.confidence:.0%}")
    x, y, face_height = at
    _, top, _, bottom = canvas.textbbox((0, 0), "happy 100%", font)
    pad = round((bottom - top) * 0.3) + 1
    swatch = round(bottom - top)
    width = round(canvas.textlength(text, font)) + swatch + 3 * pad
    height = round(bottom - top) + 2 * pad
    left = max(0, min(x, size[0] - width))
    places = (y - height, y + face_height, y, y + face_height - height)
    inside = [place for place in places if 0 <= place <= size[1] - height] or [0]
    free = [place for place in inside if not any(overlap((left, place, width, height), box) for box in taken)]
    place = next(chain(free, inside))
    canvas.rectangle((left, place, left + width - 1, place + height - 1), fill="black")
    swatch_box = (left + pad, place + pad, left + pad + swatch - 1, place + pad + swatch - 1)
    canvas.rectangle(swatch_box, fill=_colour(face))
    canvas.text((left + 2 * pad + swatch, place + pad - top), text, fill="white", font=font)
    return left, place, width, height


def _colour(face: DetectedFace) -> str:
    if face.doubt is not None:
        return "black"  # "neutral" is grey
    classes = list(face.probabilities)
    return colours(classes)[classes.index(face.emotion)]
