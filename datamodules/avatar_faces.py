"""Cartoon faces drawn from known factors: what the 0/1 attributes mean and how a face is drawn and rendered.

A face is a dictionary of factors (mouth, hair, colours, ...). Attributes are drawn first, independently of
one another; every factor is then chosen among the values that agree with the attributes it depends on. So any
attribute combines freely with any other, and each can be seen in the picture: hats are laid over the hair and
set high enough to leave some of it visible, beards leave the mouth open to view, glasses are clear. The
background is no attribute, as headwear and long hair together hide nearly all of it.
"""

import hashlib
import io
import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import python_avatars as pa
import resvg_py
from PIL import Image

from datamodules.base import Split

RENDERER_VERSION = 1  # raise it whenever the same seed gives other pictures: cached ones are then drawn again

SPLITS: tuple[Split, ...] = ("train", "val", "test")

ATTRIBUTES: tuple[str, ...] = (
    "smiling",
    "open_mouth",
    "glasses",
    "facial_hair",
    "headwear",
    "long_hair",
    "light_hair",
    "dark_skin",
    "raised_eyebrows",
    "closed_eyes",
    "rosy_cheeks",
    "earrings",
    "flower",
    "big_nose",
)

NONE = "NONE"


class Factor(NamedTuple):
    """Values of one factor, listed by the 0/1 values of the attributes it depends on."""

    attributes: tuple[str, ...]
    values: dict[tuple[int, ...], tuple[str, ...]]


# Left out, as they are ambiguous at 64 pixels or hide something else: mouths such as DISBELIEF and GRIMACE,
# beards and moustaches over the corners of the mouth, sunglasses, fringes over eyebrows, half-closed eyes.
# A wink counts as closed eyes. Fewer hair styles go under headwear: those that differ in what stays visible.
FACTORS: dict[str, Factor] = {
    "mouth": Factor(
        ("smiling", "open_mouth"),
        {
            (0, 0): ("SERIOUS", "SAD"),
            (0, 1): ("CONCERNED", "SCREAM_OPEN"),
            (1, 0): ("TWINKLE",),
            (1, 1): ("SMILE", "BIG_SMILE"),
        },
    ),
    "accessory": Factor(("glasses",), {(0,): (NONE,), (1,): ("PRESCRIPTION_2", "ROUND")}),
    "facial_hair": Factor(("facial_hair",), {(0,): (NONE,), (1,): ("BEARD_LIGHT", "WICK_BEARD")}),
    "headwear": Factor(("headwear",), {(0,): (NONE,), (1,): ("HAT", "TURBAN")}),
    "headwear_color": Factor(("headwear",), {(0,): (NONE,), (1,): ("#3F7FD0", "#D0393E", "#3D9A50", "#8A4FB5")}),
    "hair": Factor(
        ("long_hair", "headwear"),
        {
            (0, 0): ("SHORT_FLAT", "SHORT_WAVED", "SHORT_ROUND", "SHORT_CURLY", "ELVIS", "POMPADOUR"),
            (0, 1): ("ELVIS", "POMPADOUR"),
            (1, 0): ("STRAIGHT_1", "LONG_NOT_TOO_LONG", "CURVY", "DREADS", "BIG_HAIR"),
            (1, 1): ("STRAIGHT_1", "LONG_NOT_TOO_LONG", "DREADS"),
        },
    ),
    "hair_color": Factor(("light_hair",), {(0,): ("#2C1B18", "#4A2A20"), (1,): ("#F0C030", "#E0A818", "#DDE0E6")}),
    "skin_color": Factor(("dark_skin",), {(0,): ("#FFDBB4", "#EDB98A"), (1,): ("#AE5D29", "#8D4F2B")}),
    "eyebrows": Factor(
        ("raised_eyebrows",),
        {
            (0,): ("DEFAULT_NATURAL", "FLAT_NATURAL", "ANGRY_NATURAL"),
            (1,): ("RAISED_EXCITED", "RAISED_EXCITED_NATURAL"),
        },
    ),
    "eyes": Factor(("closed_eyes",), {(0,): ("DEFAULT", "SURPRISED", "EYE_ROLL"), (1,): ("CLOSED", "HAPPY", "WINK")}),
    "nose": Factor(("big_nose",), {(0,): ("SMALL",), (1,): ("BIG",)}),
    "cheeks": Factor(("rosy_cheeks",), {(0,): (NONE,), (1,): ("ROSY",)}),
    "earring_color": Factor(("earrings",), {(0,): (NONE,), (1,): ("#12B5B0", "#D81B8C")}),
    "flower_color": Factor(("flower",), {(0,): (NONE,), (1,): ("#FF7F1F",)}),
    "background": Factor(
        (), {(): ("#CFE8F7", "#CFF2E3", "#FFF0B8", "#FFD3DC", "#E3D9F5", "#8FB7D9", "#8CC4A8", "#D9A0B0")}
    ),
}


class Face(NamedTuple):
    """What is known of one face: 0/1 by attribute name, and the value of every factor."""

    attributes: dict[str, int]
    factors: dict[str, str]


def sample_factors(rng: np.random.Generator, attributes: dict[str, int]) -> dict[str, str]:
    """Choose every factor uniformly among the values that agree with the attributes.

    Args:
        rng: The only source of chance.
        attributes: 0 or 1 for each name in `ATTRIBUTES`.

    Returns:
        One value for each key of `FACTORS`: the name of a part, a colour "#RRGGBB", or "NONE".
    """
    factors = {}
    for name, factor in FACTORS.items():
        values = factor.values[tuple(attributes[attribute] for attribute in factor.attributes)]
        factors[name] = values[int(rng.integers(len(values)))]
    return factors


def split_of(factors: dict[str, str]) -> Split:
    """The split that owns these factors: by a stable hash, 80 % of combinations train, 10 % val and test."""
    # Hair and headwear may hide the background: faces that differ in nothing else can be the same picture.
    visible = {name: value for name, value in factors.items() if name != "background"}
    digest = hashlib.sha256(json.dumps(visible, sort_keys=True).encode()).digest()
    bucket = int.from_bytes(digest[:8], "big") % 10
    return "train" if bucket < 8 else "val" if bucket == 8 else "test"


def sample_face(
    seed: int, split: Split, index: int, correlated: tuple[str, str] | None = None, correlation: float = 0.0
) -> Face:
    """Draw face number `index` of a split; the same arguments give the same face everywhere.

    Attributes are fair and independent coins. Faces are drawn until one belongs to the split (`split_of`), so
    no two splits share a picture. Within a split a combination may come up twice.

    Args:
        seed: Not negative.
        split: "train", "val" or "test".
        index: Position in the split, from 0.
        correlated: Two attributes; with probability `correlation` the second copies the first.
        correlation: In [0, 1].
    """
    rng = np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, SPLITS.index(split), index])))
    while True:
        attributes = dict(zip(ATTRIBUTES, rng.integers(2, size=len(ATTRIBUTES)).tolist(), strict=True))
        copied = rng.random() < correlation  # drawn in any case: the faces that do not copy stay as they were
        if correlated is not None and copied:
            attributes[correlated[1]] = attributes[correlated[0]]
        factors = sample_factors(rng, attributes)
        if split_of(factors) == split:
            return Face(attributes, factors)


# In units of the library's drawing, 264 x 280: x, y, width, height. From the top of the hair to the chin; ten
# per cent taller than wide and squeezed to a square, which leaves more pixels to the mouth.
_CROP = (56, 22, 152, 168)
# How far headwear is lifted, in the same units, to show hair and eyebrows under it.
_LIFT = {"HAT": 14, "TURBAN": 24}
_TOP = ".//*[@id='transparent_Top']"


def render(factors: dict[str, str], size: int = 64) -> np.ndarray:
    """Draw a face.

    Args:
        factors: One value for each key of `FACTORS`.
        size: Height and width in pixels. Edges are antialiased by the rasteriser.

    Returns:
        uint8 array (size, size, 3), RGB.
    """
    root = _drawing(factors, pa.HairType[factors["hair"]])
    if factors["headwear"] != NONE:
        headwear = _drawing(factors, pa.HatType[factors["headwear"]]).find(_TOP)
        headwear.set("transform", f"translate(0,-{_LIFT[factors['headwear']]})")
        root.find(_TOP).append(headwear)
    root.extend(_ornaments(factors))
    x, y, width, height = _CROP
    root.set("viewBox", f"{x} {y} {width} {height}")
    root.set("preserveAspectRatio", "none")
    root.set("width", str(size))
    root.set("height", str(size))
    png = resvg_py.svg_to_bytes(
        svg_string=ElementTree.tostring(root, encoding="unicode"),
        background=factors["background"],
        skip_system_fonts=True,
    )
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def counterparts(face: Face, attribute: str) -> Iterator[np.ndarray]:
    """Pictures of a face in which this attribute alone is the other, uint8 (64, 64, 3): true counterfactuals.

    They have every value, in turn, of the factors that cannot stay as they are.
    """
    other = face.attributes | {attribute: 1 - face.attributes[attribute]}
    allowed = {name: factor.values[tuple(other[a] for a in factor.attributes)] for name, factor in FACTORS.items()}
    values = {name: choices for name, choices in allowed.items() if face.factors[name] not in choices}
    for turn in range(max(map(len, values.values()))):
        yield render(face.factors | {name: choices[turn % len(choices)] for name, choices in values.items()})


def region(face: Face, attribute: str) -> np.ndarray:
    """Where the picture of a face can change if this attribute alone becomes the other: bool (64, 64)."""
    here = render(face.factors)
    return np.any([(here != there).any(-1) for there in counterparts(face, attribute)], axis=0)


def _drawing(factors: dict[str, str], top: pa.HairType | pa.HatType) -> ElementTree.Element:
    """The library's drawing. Every argument is given, as a default of the library is random."""
    # To the library, glasses and beard are part of the top. They are drawn once, with the hair.
    worn_over_hair = isinstance(top, pa.HatType)
    avatar = pa.Avatar(
        style=pa.AvatarStyle.TRANSPARENT,
        background_color=factors["background"],
        top=top,
        hat_color=factors["headwear_color"],
        eyebrows=pa.EyebrowType[factors["eyebrows"]],
        eyes=pa.EyeType[factors["eyes"]],
        nose=pa.NoseType.SMALL,
        mouth=pa.MouthType[factors["mouth"]],
        facial_hair=pa.FacialHairType[NONE if worn_over_hair else factors["facial_hair"]],
        skin_color=factors["skin_color"],
        hair_color=factors["hair_color"],
        facial_hair_color=factors["hair_color"],
        accessory=pa.AccessoryType[NONE if worn_over_hair else factors["accessory"]],
        clothing=pa.ClothingType.NONE,
        clothing_color=NONE,
        shirt_graphic=pa.ClothingGraphic.NONE,
        shirt_text="",
    )
    return ElementTree.fromstring(avatar.render())


def _ornaments(factors: dict[str, str]) -> Iterator[ElementTree.Element]:
    """What the library lacks; drawn last so that neither hair nor hat hides it."""
    if factors["nose"] == "BIG":
        yield _ellipse(132, 128, 16, 10, fill="#000000", fill_opacity="0.25")
    if factors["cheeks"] == "ROSY":
        yield from (_ellipse(x, 141, 12, 8, fill="#F0506E", fill_opacity="0.6") for x in (97, 167))
    if (color := factors["earring_color"]) != NONE:
        yield from (_ellipse(x, 140, 6, 6, fill=color, stroke="#FFFFFF", stroke_width="2") for x in (70, 194))
    if (color := factors["flower_color"]) != NONE:
        for angle in np.linspace(0, 2 * np.pi, num=5, endpoint=False):
            x, y = 184 + 9 * np.sin(angle), 56 - 9 * np.cos(angle)
            yield _ellipse(x, y, 7, 7, fill=color, stroke="#FFFFFF", stroke_width="1.5")
        yield _ellipse(184, 56, 5, 5, fill="#FFFFFF")


def _ellipse(cx: float, cy: float, rx: float, ry: float, **style: str) -> ElementTree.Element:
    geometry = {"cx": f"{cx:.2f}", "cy": f"{cy:.2f}", "rx": f"{rx:.2f}", "ry": f"{ry:.2f}"}
    style = {name.replace("_", "-"): value for name, value in style.items()}
    return ElementTree.Element("{http://www.w3.org/2000/svg}ellipse", geometry | style)
