"""The same article again: by its address, by its words, or nearly by its words. The earliest stays."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from instar.data.finance.words import words

WINDOW = 7 * 24 * 3600 * 1_000_000
"""Microseconds within which a near-duplicate is looked for."""
NEAR = 3
"""Bits of 64 in which near-duplicates may differ."""
_FEWEST = 8
"""Words below which a text has no SimHash: short headlines of a series ("Stocks to watch today") are alike without being one."""


def simhash(text: str) -> int | None:
    """SimHash (Charikar 2002) of word 3-grams, 64 bits; None below 8 words.

        bit b = 1 where Σ_g (2 · h_g[b] − 1) > 0        h_g: 64-bit hash of 3-gram g, each occurrence counted

    O(words). Texts that share most 3-grams differ in few bits.
    """
    found = words(text)
    if len(found) < _FEWEST:
        return None
    grams = (" ".join(found[i : i + 3]) for i in range(len(found) - 2))
    hashes = b"".join(hashlib.blake2b(gram.encode(), digest_size=8).digest() for gram in grams)
    bits = np.unpackbits(np.frombuffer(hashes, np.uint8).reshape(-1, 8), axis=1)
    votes = 2 * bits.sum(0, dtype=np.int64) > len(bits)
    return int.from_bytes(np.packbits(votes).tobytes(), "big")


class Seen(NamedTuple):
    """What duplicates are told by. Keys are unique; they decide only between records that are equal in all else."""

    key: str
    url: str
    known: int
    """Microseconds."""
    body: str
    """Hash of the words of the body, "" for none."""
    simhash: int | None
    symbols: frozenset[str] = frozenset()
    """Those that the source gives."""


@dataclass(frozen=True)
class Copy:
    """An article that is another one again."""

    key: str
    of: str
    rule: str
    """url, body or near."""
    same_words: bool
    """Whether no two bodies differ: a source that lists it for another company then says that of the article, too."""


def find(
    articles: Sequence[Seen], *, urls: bool = True, near: bool = True
) -> tuple[list[str], list[Copy], list[tuple[str, str]]]:
    """(keys of the articles that stay, copies, pairs (record, article) that are one).

    Articles are read in the order of (known, address, body; without one last), whatever order they are given in, and each is
    compared only with earlier ones: what comes later never changes what an earlier one is. Records of one address and one time
    are one article told twice (lists of several symbols), and no copy. A near-duplicate is compared with articles that stay, of
    the 7 days before it, and is none where sources give both symbols, and none in common: reports made from one template about
    several companies differ in few words. Expected O(N): of two codes within 3 bits at least one of four 16-bit blocks is equal.

    urls: compare addresses and bodies. near: compare SimHashes.
    """
    stay: list[str] = []
    copies: list[Copy] = []
    same: list[tuple[str, str]] = []
    by_url: dict[str, tuple[Seen, str]] = {}
    by_body: dict[str, str] = {}
    recent = _Recent()
    order = sorted(articles, key=lambda seen: (seen.known, seen.url, not seen.body, seen.body, seen.key))
    for one, code in zip(order, _comparable(order) if near else [None] * len(order), strict=True):
        first = by_url.get(one.url) if urls and one.url else None
        if first is not None:
            before, of = first
            if before.known != one.known:
                copies.append(Copy(one.key, of, "url", len({before.body, one.body} - {""}) < 2))
            elif before.key == of:
                same.append((one.key, of))
            continue
        of = by_body.get(one.body, "") if urls and one.body else ""
        rule = "body"
        if not of and code is not None:
            of, rule = recent.match(code, one), "near"
        if one.url:
            by_url[one.url] = one, of or one.key
        if of:
            copies.append(Copy(one.key, of, rule, rule == "body"))
            continue
        stay.append(one.key)
        if one.body:
            by_body[one.body] = one.key
        if code is not None:
            recent.add(code, one)
    return stay, copies, same


def _comparable(order: Sequence[Seen]) -> list[int | None]:
    """The codes of articles, by time, of which a block is found in another article's within the window; most are alone."""
    coded = np.array([place for place, one in enumerate(order) if one.simhash is not None], np.int64)
    codes = np.array([order[place].simhash for place in coded], np.uint64)
    known = np.array([order[place].known for place in coded], np.int64)
    together = np.zeros(len(coded), bool)
    for shift in range(0, 64, 16):
        block = codes >> np.uint64(shift) & np.uint64(0xFFFF)
        by_block = np.argsort(block, kind="stable")
        next_to = (np.diff(block[by_block]) == 0) & (np.diff(known[by_block]) <= WINDOW)
        together[by_block[1:][next_to]] = together[by_block[:-1][next_to]] = True
    found: list[int | None] = [None] * len(order)
    for place in coded[together].tolist():
        found[place] = order[place].simhash
    return found


class _Recent:
    """SimHashes of the window, by their four blocks."""

    def __init__(self) -> None:
        self.queue: deque[tuple[int, Seen]] = deque()
        self.blocks: dict[int, dict[str, tuple[int, frozenset[str]]]] = {}

    def add(self, code: int, one: Seen) -> None:
        self.queue.append((code, one))
        for block in _blocks(code):
            if block in self.blocks:
                self.blocks[block][one.key] = code, one.symbols
            else:
                self.blocks[block] = {one.key: (code, one.symbols)}

    def match(self, code: int, one: Seen) -> str:
        """The earliest of the window within NEAR bits that is not of other symbols alone, or ""."""
        while self.queue and self.queue[0][1].known < one.known - WINDOW:
            old, gone = self.queue.popleft()
            for block in _blocks(old):
                others = self.blocks[block]
                del others[gone.key]
                if not others:
                    del self.blocks[block]
        found: set[str] = set()
        for block in _blocks(code):
            if block in self.blocks:  # most are in none: a week's articles fill few of the 65,536 values of a block
                for key, (other, symbols) in self.blocks[block].items():
                    apart = symbols and one.symbols and not symbols & one.symbols
                    if not apart and (code ^ other).bit_count() <= NEAR:
                        found.add(key)
        return next((seen.key for _, seen in self.queue if seen.key in found), "") if found else ""


def _blocks(code: int) -> tuple[int, int, int, int]:
    """The four blocks, each with its place above its 16 bits."""
    low, second, third = code & 0xFFFF, code >> 16 & 0xFFFF, code >> 32 & 0xFFFF
    return low, 0x10000 | second, 0x20000 | third, 0x30000 | code >> 48
