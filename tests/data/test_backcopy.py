"""Bigram backcopy: rows follow their rule, and the likelihood that is given for them is theirs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from instar.bench.seeds import stream
from instar.data.backcopy import backcopy
from instar.errors import DataError

TEXT = np.frombuffer(b"the cat and the hen met at ten; a man can eat ham. the end of the tale came then. " * 3, dtype=np.uint8)


def test_triggers_are_the_most_frequent_bytes_and_copy_what_stood_before_them() -> None:
    chain = backcopy([TEXT], 3)
    rows = chain.rows(200, 30, stream(0, "x"))
    assert rows.shape == (200, 31)
    assert (rows[:, 0] == chain.bos).all()
    assert (rows[:, 1:] < chain.bos).all()
    assert torch.equal(chain.start.argsort(descending=True, stable=True)[:3], torch.arange(3))  # ' ', 'e', 'a' here
    before, present, after = rows[:, :-2], rows[:, 1:-1], rows[:, 2:]
    copied = (present < 3) & (before != chain.bos)
    assert torch.equal(after[copied], before[copied])
    assert (chain.following[present[~copied], after[~copied]] > 0).all()


def test_the_chain_has_the_frequencies_of_the_text() -> None:
    chain = backcopy([TEXT], 1)
    torch.testing.assert_close(chain.following.sum(1), torch.ones(chain.bos, dtype=torch.float64))
    rows = chain.rows(4000, 3, stream(1, "x"))
    first = torch.bincount(rows[:, 1], minlength=chain.bos) / 4000
    torch.testing.assert_close(first.double(), chain.start, rtol=0, atol=0.03)
    second = rows[rows[:, 1] == 2][:, 2]
    torch.testing.assert_close(
        torch.bincount(second, minlength=chain.bos).double() / len(second), chain.following[2], rtol=0, atol=0.1
    )


def test_likelihood_of_rows_by_hand() -> None:
    chain = backcopy([TEXT], 2)
    rows = chain.rows(5, 12, stream(2, "x"))
    want = torch.zeros(5, 12, dtype=torch.float64)
    for b, row in enumerate(rows.tolist()):
        for t in range(12):
            present, after = row[t], row[t + 1]
            if present == chain.bos:
                want[b, t] = -chain.start[after].log()
            elif not (present < 2 and row[t - 1] != chain.bos):
                want[b, t] = -chain.following[present, after].log()
    torch.testing.assert_close(chain.nats(rows), want)
    assert (want == 0).any()


def test_a_byte_that_ends_the_text_leads_nowhere_and_is_left_out() -> None:
    chain = backcopy([np.frombuffer(b"ababcabcabac" + b"xz", dtype=np.uint8)], 1)
    assert chain.bos == 3  # a, b and c: z is last, and then x led to z alone
    with pytest.raises(DataError, match="different bytes"):
        backcopy([np.frombuffer(b"abab", dtype=np.uint8)], 1)
