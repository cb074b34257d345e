"""Tiny copies of data sets in their official layouts."""

import json

import numpy as np

from ace.images import save_png
from ace.models.oracles import CELEBA_ATTRIBUTES

CELEBA = {"000001.jpg": 0, "000002.jpg": 1, "000003.jpg": 0, "162771.jpg": 1, "182638.jpg": 2}  # their partitions
CELEBA_HQ = {0: 119_614, 1: 162_770, 2: 162_771, 3: 182_637, 4: 182_638, 10: 202_599}  # their numbers in CelebA
ZEBRA, SORREL, CAT = "n02391049", "n02389026", "n02124075"


def image(path, height=24, width=20, level=99):
    """An image file of one colour, whatever its ending says: Pillow looks into the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_png(np.full((height, width, 3), level, np.uint8), path)


def attributes(number):
    """-1 or 1 for each attribute, other ones for each number."""
    return [1 if (number >> place % 8) & 1 else -1 for place in range(len(CELEBA_ATTRIBUTES))]


def celeba(root, csv=False, images="img_align_celeba"):
    """CelebA as its authors publish it, or as on Kaggle; image n has the attributes n."""
    separator, rows = ("," if csv else " "), {name: attributes(int(name[:6])) for name in CELEBA}
    heading = [["image_id", *CELEBA_ATTRIBUTES]] if csv else [[len(rows)], CELEBA_ATTRIBUTES]
    table = [*heading, *([name, *values] for name, values in rows.items())]
    partition = [*([["image_id", "partition"]] if csv else []), *CELEBA.items()]
    root.mkdir(parents=True, exist_ok=True)
    for name, cells in (("list_attr_celeba", table), ("list_eval_partition", partition)):
        text = "\n".join(separator.join(map(str, row)) for row in cells)
        (root / f"{name}.{'csv' if csv else 'txt'}").write_text(f"{text}\n")
    for name in CELEBA:
        image(root / images / name)
    return root


def celeba_hq(root):
    """CelebAMask-HQ; image n has the attributes n."""
    root.mkdir(parents=True, exist_ok=True)
    rows = [f"{index}.jpg  {' '.join(map(str, attributes(index)))}" for index in CELEBA_HQ]
    heading = [str(len(rows)), f"{' '.join(CELEBA_ATTRIBUTES)} "]
    (root / "CelebAMask-HQ-attribute-anno.txt").write_text("\n".join([*heading, *rows]))
    rows = [f"{index:<12}{place - 1:<12}{place:06d}.jpg" for index, place in CELEBA_HQ.items()]
    (root / "CelebA-HQ-to-CelebA-mapping.txt").write_text("\n".join(["idx         orig_idx    orig_file   ", *rows]))
    for index in CELEBA_HQ:
        image(root / "CelebA-HQ-img" / f"{index}.jpg", 20, 20)
    return root


def bdd100k(root):
    """The images of BDD100K."""
    for split in ("train", "val", "test"):
        for name in ("c-1.jpg", "a-1.jpg", "b-2.jpg"):
            image(root / "images" / "100k" / split / f"{split}-{name}", 18, 32)
    return root


def bdd_oia(root):
    """The last frames of BDD-OIA; "confusing" is left out of the last annotation, as in some of the real ones."""
    actions = {"c.jpg": [0, 1, 0, 0, 0], "a.jpg": [1, 0, 1, 0, 0], "odd.jpg": [0, 0, 0, 0, 1], "b.jpg": [1, 0, 0, 1]}
    for split in ("train", "val", "test"):
        names = [f"{split}-{name}" for name in actions]
        content = {
            "images": [{"file_name": name, "id": place} for place, name in enumerate(names)][::-1],
            "annotations": [{"category": category} for category in actions.values()],
        }
        for name in names:
            image(root / "data" / name, 18, 32)
        (root / f"{split}_25k_images_actions.json").write_text(json.dumps(content))
    return root


def imagenet(root):
    """ImageNet in torchvision's layout, three of its classes."""
    for place, wnid in enumerate((ZEBRA, SORREL, CAT)):
        for number in (0, 1):
            image(root / "train" / wnid / f"{wnid}_{number}.JPEG")
            image(root / "val" / wnid / f"ILSVRC2012_val_0000000{3 * number + place}.JPEG")
    return root
