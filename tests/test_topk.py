"""The largest scores of long rows are those of torch.topk, which looks at all of them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from beyond_binary.topk import BLOCK, largest


@pytest.mark.parametrize(("n", "k"), [(4 * BLOCK, 1), (5 * BLOCK + 3, 1), (70 * BLOCK - 1, 17), (BLOCK, 5), (3, 3)])
def test_values_and_positions(n, k):
    x = torch.rand(7, n, generator=torch.Generator().manual_seed(n))
    x[0, -1] = x[1, 0] = 2.0  # in the rest behind the blocks, and in the first of them
    values, places = largest(x, k)
    assert torch.equal(values, x.topk(k).values)
    assert torch.equal(places, x.topk(k).indices)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(4 * BLOCK, 12 * BLOCK),
    st.integers(1, 3),
    st.sampled_from([1, 2, 5, 1000]),
    st.sampled_from([0.0, 0.5, 0.999, 1.0]),
    st.integers(0, 2**31),
)
def test_ties_and_scores_that_count_as_nothing(n, k, levels, nothing, seed):
    random = torch.Generator().manual_seed(seed)
    x = torch.randint(levels, (3, n), generator=random).float()
    x.masked_fill_(torch.rand(3, n, generator=random) < nothing, -torch.inf)
    values, places = largest(x, k)
    assert torch.equal(values, x.topk(k).values)
    assert torch.equal(x.gather(1, places), values)
    assert all(len(set(row)) == k for row in places.tolist())


def test_nan_counts_as_largest_as_for_torch():
    x = torch.rand(2, 8 * BLOCK)
    x[1, 100] = torch.nan
    values, places = largest(x, 2)
    assert values[1].isnan().tolist() == [True, False]
    assert places[1, 0] == 100


def test_rows_of_a_part_of_a_table():
    x = torch.rand(9, 20 * BLOCK).T.contiguous().T[2:5]
    assert torch.equal(largest(x, 4)[0], x.topk(4).values)
