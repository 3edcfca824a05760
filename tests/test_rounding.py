"""Rounded float32 values against NumPy's own float16, whose significant bits are 11 too."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pipeline.arrays.rounding import rounded

NUMBERS = st.floats(2**-14, 60_000, width=32) | st.floats(-60_000, -(2**-14), width=32) | st.just(0.0)


@given(arrays(np.float32, 8, elements=NUMBERS))
def test_eleven_bits_are_those_of_float16(values):
    found = rounded(values, 11)
    halves = values.astype(np.float16).astype(np.float32)  # NumPy takes ties to the even neighbour
    assert np.array_equal(np.abs(found - values), np.abs(halves - values))
    assert np.all(np.abs(found - values) <= 2.0**-11 * np.abs(values))
    assert np.array_equal(rounded(found, 11), found)
    assert not np.any(found.view(np.uint32) & 0x1FFF)


def test_values_by_hand():
    given_values = np.array([1 + 2**-11, 1 + 2**-12, -(2 - 2**-12), np.inf, -np.inf, 0.0], np.float32)
    assert rounded(given_values, 11).tolist() == [1 + 2**-10, 1.0, -2.0, np.inf, -np.inf, 0.0]
    assert np.isnan(rounded(np.array([np.nan, -np.nan], np.float32), 11)).all()
