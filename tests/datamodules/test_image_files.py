import pickle
import re
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch._utils import ExceptionWrapper
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from datamodules.image_files import (
    Entry,
    ImageFiles,
    ImageFilesDataModule,
    UnreadableImageError,
    check_shares,
    hashed_split,
    image_id,
    read_header,
    read_image,
    readable,
)

RED, GREEN, BLUE, WHITE, BLACK = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0]


def noise(height=8, width=8):
    return Image.fromarray(np.random.default_rng(0).integers(256, size=(height, width, 3), dtype=np.uint8))


def pixels(path):
    image = read_image(path)
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


@pytest.fixture
def save(tmp_path):
    """Writes an image, and returns its path."""

    def write(image, name="image.png", **options):
        image.save(tmp_path / name, **options)
        return str(tmp_path / name)

    return write


@pytest.fixture
def truncated(save, tmp_path):
    """A photograph that lacks its second half."""
    path = tmp_path / save(noise(64, 64), "half.jpg")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return str(path)


def entry(path, label=0, id="id"):
    return Entry(str(path), label, id)


def test_rgb_is_read_as_it_is(save):
    assert pixels(save(noise())) == np.asarray(noise()).tolist()


def test_grey_and_one_bit_fill_all_channels(save):
    assert pixels(save(Image.fromarray(np.array([[0, 77]], np.uint8)))) == [[[0] * 3, [77] * 3]]
    assert pixels(save(Image.fromarray(np.array([[False, True]])))) == [[BLACK, WHITE]]


@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "grey.ppm"])
def test_16_bit_grey_is_scaled_and_not_clipped(save, name):
    levels = np.array([[0, 128, 129, 257 * 100, 32768, 65535]], np.uint16)
    assert np.array(pixels(save(Image.fromarray(levels), name)))[0, :, 0].tolist() == [0, 0, 1, 100, 128, 255]


def test_numbers_of_unknown_range_are_refused(save):
    with pytest.raises(UnreadableImageError, match=r"go from -1 to 70000, which is not 16-bit"):
        read_image(save(Image.fromarray(np.array([[-1, 70000]], np.int32)), "deep.tif"))
    with pytest.raises(UnreadableImageError, match="floating-point"):
        read_image(save(Image.fromarray(np.array([[0.5]], np.float32)), "float.tif"))


def test_transparent_parts_are_white(save):
    rgba = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    assert pixels(save(Image.fromarray(rgba))) == [[RED, WHITE, [204] * 3]]
    assert pixels(save(Image.fromarray(np.array([[[9, 255], [9, 0]]], np.uint8), "LA"))) == [[[9] * 3, WHITE]]


def test_a_palette_is_looked_up_and_its_transparent_colour_is_white(save):
    image = Image.fromarray(np.array([[0, 1, 2]], np.uint8), "P")
    image.putpalette(RED + GREEN + BLUE)
    assert pixels(save(image)) == [[RED, GREEN, BLUE]]
    assert pixels(save(image, transparency=1)) == [[RED, WHITE, BLUE]]


def test_the_transparent_colour_of_rgb_is_white(save):
    assert pixels(save(Image.fromarray(np.array([[RED, BLUE]], np.uint8)), transparency=(0, 0, 255))) == [[RED, WHITE]]


def test_cmyk_becomes_rgb(save):
    cmyk = np.array([[[0, 0, 0, 0], [0, 255, 255, 0], [0, 0, 0, 255]]], np.uint8)
    assert pixels(save(Image.fromarray(cmyk, "CMYK"), "print.tif")) == [[WHITE, RED, BLACK]]
    photograph = save(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "print.jpg", quality=100)
    assert np.abs(np.array(pixels(photograph)) - RED).max() <= 3


@pytest.mark.parametrize("name", ["film.gif", "film.png", "film.webp"])
def test_the_first_frame_of_an_animation_is_taken(save, name):
    frames = [Image.new("RGB", (2, 2), color) for color in ("red", "blue")]
    path = save(frames[0], name, save_all=True, append_images=frames[1:], lossless=True)
    assert pixels(path) == [[RED, RED], [RED, RED]]


@pytest.mark.parametrize("name", ["lying.png", "lying.tif", "lying.jpg", "lying.webp"])
def test_an_image_is_turned_upright(save, name):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter, clockwise
    lying = Image.new("RGB", (32, 16), "blue")
    lying.paste("red", (0, 0, 16, 16))
    path = save(lying, name, exif=exif)
    upright = np.array(pixels(path))
    assert upright.shape == (32, 16, 3)
    assert np.abs(upright[4, 8] - RED).max() < 5
    assert np.abs(upright[28, 8] - BLUE).max() < 5
    assert read_header(path) == (32, 16, "RGB")


def test_a_truncated_file_is_named_with_the_reason_and_the_remedy(truncated):
    with pytest.raises(
        UnreadableImageError, match=r"half\.jpg cannot be read: .*truncated.*remove or replace.*corrupt to 'skip'"
    ):
        read_image(truncated)


@pytest.mark.parametrize(("content", "reason"), [(b"", "it is empty"), (b"<html>", "it is no image")])
def test_what_is_no_image_is_named(tmp_path, content, reason):
    path = tmp_path / "a.png"
    path.write_bytes(content)
    for read in (read_image, read_header):
        with pytest.raises(UnreadableImageError, match=rf"a\.png cannot be read: {reason}"):
            read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UnreadableImageError, match=r"a\.png cannot be read: .*No such file"):
        read_image(tmp_path / "a.png")


def test_an_image_of_huge_dimensions_is_refused(save, monkeypatch):
    path = save(noise(8, 8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 31)  # Pillow refuses from twice as many
    with pytest.raises(UnreadableImageError, match=r"64 pixels\) exceeds limit"):
        read_image(path)


def test_a_header_is_read_without_decoding(truncated):
    assert read_header(truncated) == (64, 64, "RGB")


def test_the_error_keeps_its_kind_and_message_on_its_way_from_a_worker(truncated):
    try:
        read_image(truncated)
    except UnreadableImageError:
        sent = ExceptionWrapper()  # what a DataLoader does in a worker; a real one takes 5 s to shut down
    with pytest.raises(UnreadableImageError, match=r"half\.jpg cannot be read"):
        sent.reraise()


def test_readable_files_are_told_from_the_others_in_order(save, truncated, tmp_path):
    (tmp_path / "empty.png").touch()
    good = [entry(save(noise(), f"{name}.png"), id=name) for name in "abc"]
    kept, bad = readable([good[0], entry(truncated), good[1], entry(tmp_path / "empty.png"), good[2]])
    assert kept == good
    assert [re.search(r"(\w+)\.\w+ cannot be read: (.*)", line).groups() for line in bad] == [
        ("half", bad[0].partition("read: ")[2]),
        ("empty", "it is empty"),
    ]


def test_a_sample_has_image_label_and_id(save):
    files = ImageFiles([entry(save(noise()), 3, "first"), entry("nowhere.png", (0, 1), "second")], 8)
    assert (files.ids, files.labels, len(files)) == (["first", "second"], [3, (0, 1)], 2)
    sample = files[0]
    assert (sample["label"], sample["id"]) == (3, "first")
    assert sample["image"].dtype == torch.float32
    assert torch.equal(sample["image"], torch.from_numpy(np.array(noise())).permute(2, 0, 1) / 255)


def test_grey_has_one_channel(save):
    colour, grey = noise(), noise().convert("L")
    expected = torch.from_numpy(np.array(grey))[None] / 255
    for image in (colour, grey):
        data = FewFiles([entry(save(image))], image_size=8, channels=1)
        assert data.shape == (1, 8, 8)
        assert torch.equal(data.dataset("test")[0]["image"], expected)
    with pytest.raises(ValueError, match=r"channels is 4: give one of 1, 3\."):
        FewFiles([], channels=4)


def test_attributes_become_a_float_tensor(save):
    label = ImageFiles([entry(save(noise()), (0, 1, 1))], 8)[0]["label"]
    assert label.dtype == torch.float32
    assert label.tolist() == [0, 1, 1]


def test_crop_keeps_the_proportions_and_the_middle(save):
    image = noise(12, 20)
    files = ImageFiles([entry(save(image))], 12)
    assert torch.equal(files[0]["image"], torch.from_numpy(np.array(image)[:, 4:16]).permute(2, 0, 1) / 255)
    wide = ImageFiles([entry(save(image))], (6, 20))[0]["image"]
    assert torch.equal(wide, torch.from_numpy(np.array(image)[3:9]).permute(2, 0, 1) / 255)


def test_squash_keeps_the_whole_image(save):
    image = Image.new("RGB", (40, 10), "blue")
    image.paste("red", (0, 0, 20, 10))
    squashed = ImageFiles([entry(save(image))], (10, 8), "squash")[0]["image"]
    assert squashed.shape == (3, 10, 8)
    assert squashed[:, 5, 0].tolist() == [1, 0, 0]
    assert squashed[:, 5, 7].tolist() == [0, 0, 1]


@pytest.mark.parametrize("resample", ["bilinear", "bicubic"])
@pytest.mark.parametrize("shape", [(218, 178), (131, 97), (99, 140)])
def test_crop_shows_what_torchvision_resizes_and_crops(save, shape, resample):
    smooth = noise(16, 16).resize(shape[::-1], Image.Resampling.BICUBIC)
    image = ImageFiles([entry(save(smooth))], 64, "crop", resample=resample)[0]["image"]
    published = Compose([Resize(64, InterpolationMode(resample)), CenterCrop(64), PILToTensor()])(smooth)
    assert (image * 255 - published).abs().max() < 1.5, "up to Pillow's rounding between its two passes"


@pytest.mark.parametrize("resize", ["crop", "squash", "random_crop"])
def test_the_filter_is_chosen(save, resize):
    def read(**options):
        torch.manual_seed(0)
        return ImageFiles([entry(path)], 8, resize, **options)[0]["image"]

    path = save(noise(20, 30))
    assert torch.equal(read(), read(resample="bilinear"))
    assert not torch.equal(read(), read(resample="bicubic"))


def test_an_image_without_a_label_gives_a_sample_without_one(save):
    files = ImageFiles([entry(save(noise()), None, "a")], 8)
    assert files[0].keys() == {"image", "id"}
    assert not hasattr(files, "labels")


@pytest.mark.parametrize("resize", ["crop", "squash", "random_crop"])
def test_shrinking_is_antialiased_and_any_shape_is_taken(save, resize):
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    shrunk = ImageFiles([entry(save(Image.fromarray(stripes)))], 16, resize)[0]["image"]
    assert (shrunk - 0.5).abs().max() < 0.05
    for size in ((1, 1), (3, 500), (500, 3)):
        assert ImageFiles([entry(save(noise(*size)))], (16, 8), resize)[0]["image"].shape == (3, 16, 8)


def test_a_random_crop_shows_most_of_the_image_from_many_places(save):
    ramp = np.zeros((100, 100, 3), np.uint8)
    ramp[..., 0], ramp[..., 1] = np.arange(100)[:, None], np.arange(100)
    files = ImageFiles([entry(save(Image.fromarray(ramp)))], 50, "random_crop")
    torch.manual_seed(0)
    images = torch.stack([files[0]["image"][:2] for _ in range(100)]) * 255
    down, across = images[:, 0, -1, 0] - images[:, 0, 0, 0], images[:, 1, 0, -1] - images[:, 1, 0, 0]
    assert (down - across).abs().max() <= 2, "the proportions stay"
    assert 86 <= down.min() < 90
    assert 96 <= down.max() <= 99  # a side of the smallest crop is sqrt(0.8) of the image's
    assert images[:, 0, 0, 0].unique().numel() > 3
    assert not torch.equal(images[:, 0, 0, 0], images[:, 1, 0, 0])


def test_it_can_be_sent_to_another_process(save):
    files = ImageFiles([entry(save(noise()), (0, 1))], 8)
    assert torch.equal(pickle.loads(pickle.dumps(files))[0]["image"], files[0]["image"])


class FewFiles(ImageFilesDataModule):
    """Some files that are the same in every split."""

    def __init__(self, entries, **settings):
        super().__init__(**settings)
        self.class_names, self._files = ["one"], entries

    def entries(self, split):
        return self._files


def test_chance_is_for_training_only(save):
    path = save(noise(40, 60))
    data = FewFiles([entry(path)], image_size=16, resize="random_crop")
    cropped = ImageFiles([entry(path)], 16)[0]["image"]
    for split in ("train", "val", "test"):
        assert all(torch.equal(data.dataset(split)[0]["image"], cropped) for _ in range(5))
    reads = [data.training_dataset()[0]["image"] for _ in range(3)]
    assert not any(torch.equal(first, second) for first, second in pairwise(reads))
    straight = FewFiles([entry(path)], image_size=16, horizontal_flip=False)
    assert all(torch.equal(straight.training_dataset()[0]["image"], cropped) for _ in range(5))


def test_images_of_train_are_explained_without_chance(save):
    data = FewFiles([entry(save(noise(40, 60)))], image_size=16, resize="random_crop", predict_split="train")
    data.num_workers, data.batch_size = 0, 1
    reads = [next(iter(data.predict_dataloader()))["image"] for _ in range(8)]
    assert all(torch.equal(image, reads[0]) for image in reads)


def test_files_are_listed_and_looked_at_once(save, truncated, recwarn):
    data = FewFiles([entry(truncated), entry(save(noise()))], corrupt="skip", resize="random_crop")
    assert len(data.dataset("train")) == len(data.training_dataset()) == len(data.dataset("train")) == 1
    assert len([warning for warning in recwarn if "are left out" in str(warning.message)]) == 1


def test_refuse_complains_of_nothing_until_it_is_asked_for(truncated):
    dataset = FewFiles([entry(truncated)]).dataset("test")
    assert len(dataset) == 1
    with pytest.raises(UnreadableImageError):
        dataset[0]


def test_skip_leaves_out_what_cannot_be_read_and_says_so_once(save, truncated):
    data = FewFiles([entry(truncated), entry(save(noise()), id="good")], corrupt="skip", predict_split="val")
    with pytest.warns(UserWarning, match=r"1 images of val are left out:\n.*half\.jpg cannot be read: image file"):
        assert data.predict_ids() == ["good"]
    assert data.dataset("val").ids == ["good"]


@pytest.mark.parametrize("highest", [255, 4095])
@pytest.mark.parametrize("mode", ["I", "I;16"])
def test_16_bit_images_of_low_bits_alone_are_warned_of_once(save, highest, mode):
    suffix = {"I": "ppm", "I;16": "png"}[mode]
    levels = np.array([[0, highest - 7], [1, highest]], np.uint16)
    entries = [entry(save(Image.fromarray(values), f"{i}.{suffix}")) for i, values in enumerate((levels // 2, levels))]
    data = FewFiles([*entries, entry("gone.png"), entry(save(noise()))])
    with pytest.warns(UserWarning, match=rf"up to {highest} \(.*1\.{suffix}\), and white is 65535.*Scale") as told:
        assert len(data.dataset("train")) == len(data.dataset("test"))
    assert len(told) == 1


@pytest.mark.filterwarnings("error")
def test_16_bit_images_of_all_bits_and_dark_8_bit_ones_are_not_warned_of(save, truncated):
    dark, bright = (save(Image.fromarray(np.array([[value]], np.uint16)), f"{value}.png") for value in (7, 4096))
    assert len(FewFiles([entry(dark), entry(bright), entry(truncated)]).dataset("test")) == 3
    assert len(FewFiles([entry(save(Image.new("L", (8, 8), 3)))]).dataset("test")) == 1


def test_twenty_bad_files_are_named_and_the_others_counted(tmp_path):
    data = FewFiles([entry(tmp_path / f"{index}.png") for index in range(23)], corrupt="skip")
    with pytest.warns(UserWarning, match="23 images of test") as caught:
        assert len(data.dataset("test")) == 0
    assert str(caught[0].message).count("cannot be read") == 20
    assert str(caught[0].message).endswith("... and 3 more")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image_size is 0: give"),
        ({"image_size": (64, 0)}, r"image_size is \(64, 0\): give"),
        ({"resize": "stretch"}, "resize is 'stretch': give one of crop, squash, random_crop"),
        ({"corrupt": "ignore"}, "corrupt is 'ignore': give one of refuse, skip"),
        ({"resample": "nearest"}, "resample is 'nearest': give one of bilinear, bicubic"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        FewFiles([], **settings)


@pytest.mark.parametrize("name", ["a/日本.png", "日本/é.png", "a/../../b.png", "x" * 300 + ".png", "\udcff.png"])
def test_strange_names_give_safe_ids(name):
    assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]{0,100}", image_id(name))


def test_names_that_differ_only_in_what_is_replaced_keep_different_ids():
    assert image_id("a/b c.png") != image_id("a/b_c.png")
    assert image_id("dark/photo 0.png") == "dark-photo-0-8f049331"  # ids stay from version to version


def test_splits_have_their_shares_and_stay_from_version_to_version():
    splits = [hashed_split(f"cat/{index}.jpg", 0.2, 0.1) for index in range(3000)]
    shares = [splits.count(split) / 3000 for split in ("train", "val", "test")]
    assert shares == pytest.approx([0.7, 0.2, 0.1], abs=0.02)
    assert {hashed_split(f"{index}.jpg", 0.0, 0.0) for index in range(100)} == {"train"}
    assert [hashed_split(f"{index}.jpg", 0.3, 0.3) for index in range(6)] == [
        "train",
        "train",
        "val",
        "test",
        "train",
        "val",
    ]


@pytest.mark.parametrize("shares", [(-0.1, 0.1), (0.1, -0.1), (0.5, 0.5), (1.0, 0.0)])
def test_impossible_shares_are_named(shares):
    with pytest.raises(ValueError, match=rf"val_share is {shares[0]} and test_share {shares[1]}: give"):
        check_shares(*shares)
