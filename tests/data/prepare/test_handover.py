"""What is taken is what was put, however often and whatever its arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from honed.data.prepare import workers
from honed.data.prepare.handover import content_of, memory_file, put, take

pytestmark = pytest.mark.skipif(not workers.can_fork(), reason="only used where processes can be forked")
ARRAYS = st.sampled_from([np.int32, np.float32, np.int64, np.bool_]).flatmap(
    lambda dtype: arrays(
        dtype, array_shapes(max_dims=2, min_side=0), elements={"allow_nan": False} if dtype == np.float32 else None
    )
)


@given(st.lists(st.tuples(st.text(), st.lists(ARRAYS, max_size=4)), max_size=5))
def test_what_is_taken_is_what_was_put(values: list[tuple[str, list[Any]]]) -> None:
    with memory_file() as file:
        parcels = [put(value, file) for value in values]
        content = content_of(file)
    for (text, expected), parcel in zip(values, parcels, strict=True):
        found, taken = take(parcel, content)
        assert found == text and [a.dtype for a in taken] == [a.dtype for a in expected]
        assert all(np.array_equal(a, b) for a, b in zip(taken, expected, strict=True))
