"""Heat maps of changes."""

import numpy as np
import pytest

from ace.report.change import heat_map
from tests.ace.report.conftest import RED, plain


def test_a_map_is_white_where_nothing_changed_and_darkens_with_the_change():
    before = plain((100, 100, 100), (4, 4))
    after = before.copy()
    after[0] += np.array([1, 5, 40, 155], np.uint8)[:, None]
    picture = heat_map(before, after)
    assert picture.shape == (4, 4, 3)
    assert (picture[1:] == 255).all()
    lightness = picture[0].astype(int).sum(-1)
    assert lightness[0] < 765
    assert (np.diff(lightness) < 0).all()
    assert np.array_equal(heat_map(after, before), picture)
    assert np.array_equal(heat_map(before[..., :1], after[..., :1]), picture)


def test_pictures_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 4, 3\) and \(5, 5, 3\)"):
        heat_map(plain(RED, (4, 4)), plain(RED, (5, 5)))
