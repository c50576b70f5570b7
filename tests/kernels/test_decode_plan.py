"""A plan is its own: what the caller does with his arrays, with copies, and with torch's defaults changes no answer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from instar.errors import ShapeError
from instar.kernels.decode_attention import DecodePlan, attend, decode_attention

FORMS = ["torch", "segments", "compiled"]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    if request.param == "compiled":
        request.getfixturevalue("compiled")
    return request.param


@pytest.fixture
def whole() -> Iterator[None]:
    before = torch.get_default_dtype()
    yield
    torch.set_default_dtype(before)


def draw(*size: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(size, generator=generator, dtype=torch.float32) for _ in range(2)]


def query(B: int = 1) -> torch.Tensor:
    return torch.randn(B, 2, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float32)


@pytest.mark.usefixtures("whole")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_the_default_dtype_is_nothing_to_it(form: str, dtype: torch.dtype) -> None:
    q, (k, v) = query(), draw(1, 2, 3000, 64)
    wanted = decode_attention(q, k, v, [3000], workers=64, return_lse=True, form=form)
    torch.set_default_dtype(dtype)
    for found, one in zip(decode_attention(q, k, v, [3000], workers=64, return_lse=True, form=form), wanted, strict=True):
        assert torch.equal(found, one)


def test_what_the_caller_writes_later_changes_no_plan(form: str) -> None:
    q, (k, v) = query(), draw(4, 1, 16, 64)
    table, lengths, starts = torch.tensor([[2, 0, 3]]), torch.tensor([40]), torch.tensor([3])
    plan = DecodePlan.of(lengths, 1, starts=starts, page_table=table, page_size=16)
    before, _ = attend(plan, q, k, v, form=form)
    table.fill_(10**9)
    lengths.fill_(1)
    starts.fill_(0)
    assert torch.equal(attend(plan, q, k, v, form=form)[0], before)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda plan: pickle.loads(pickle.dumps(plan))])
def test_a_copy_stands_on_its_own(form: str, copied: object) -> None:
    q, (k, v) = query(), draw(4, 1, 16, 64)
    plan = DecodePlan.of([40], 1, page_table=torch.tensor([[2, 0, 3]]), page_size=16)
    before, _ = attend(plan, q, k, v, form=form)
    other = copied(plan)  # type: ignore[operator]
    assert other.addresses != plan.addresses
    plan.pages.fill(10**9)  # type: ignore[union-attr]
    assert torch.equal(attend(other, q, k, v, form=form)[0], before)


def test_numbers_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="starts expects numbers of at least 0"):
        DecodePlan.of([100], 1, starts=np.array([2**64 - 100], np.uint64))


def test_pages_that_a_window_has_left_behind_may_be_gone(form: str) -> None:
    q, (k, v) = query(2), draw(4, 1, 4, 64)
    whole = torch.tensor([[1, 2, 3], [0, 3, 2]])
    gone = torch.tensor([[-1, 2, 3], [99, -5, 10**9]])  # the second reads nothing
    plans = (DecodePlan.of([11, 3], 1, starts=[5, 6], page_table=table, page_size=4) for table in (whole, gone))
    one, other = (attend(plan, q, k, v, form=form)[0] for plan in plans)
    assert torch.equal(one, other)
    assert not one[1].any()
    with pytest.raises(ShapeError, match="sequence 0 has a negative entry"):
        DecodePlan.of([11, 3], 1, starts=[3, 6], page_table=gone, page_size=4)
