import io

import numpy as np
import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger, WandbLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ace.images import load_png
from callbacks.log_media import log_image

PICTURE = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


@pytest.mark.parametrize("image", [PICTURE, PICTURE[..., :1]], ids=["colour", "grey"])
def test_tensorboard_shows_the_picture(image, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    log_image([logger], "samples", image, step=7)
    logger.experiment.flush()
    events = EventAccumulator(logger.log_dir).Reload()
    [event] = events.Images("samples")
    assert event.step == 7
    shown = np.asarray(Image.open(io.BytesIO(event.encoded_image_string)))
    assert np.array_equal(shown, np.broadcast_to(image, PICTURE.shape))


@pytest.mark.parametrize("image", [PICTURE, PICTURE[..., :1]], ids=["colour", "grey"])
def test_wandb_shows_the_picture(image, tmp_path):
    log_image([WandbLogger(save_dir=tmp_path)], "samples", image, step=7)
    wandb.finish()
    [file] = tmp_path.rglob("samples*.png")
    assert np.array_equal(load_png(file), image)


def test_every_logger_is_served_and_those_of_numbers_alone_are_left_out(tmp_path):
    boards = [TensorBoardLogger(tmp_path, name="one"), TensorBoardLogger(tmp_path, name="two")]
    log_image([boards[0], CSVLogger(tmp_path, name="csv"), boards[1]], "samples", PICTURE, step=0)
    for board in boards:
        board.experiment.flush()
        assert EventAccumulator(board.log_dir).Reload().Tags()["images"] == ["samples"]


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
def test_other_numbers_than_bytes_reach_no_logger(dtype, tmp_path):
    logger = TensorBoardLogger(tmp_path)
    with pytest.raises(TypeError, match=r"the picture 'samples' must be of uint8, got (float32|int64); .*to_uint8"):
        log_image([logger], "samples", PICTURE.astype(dtype), step=0)
    assert not list(tmp_path.iterdir())
