"""What a frozen version predicts for the rows that another one is trained on: computed once, kept on disk, read by mapping."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from instar import files
from instar.adapters.attached import active, require
from instar.adapters.attaching import arguments
from instar.errors import DataError, DivergedError, ModelError, OutputError, ShapeError
from instar.problems.kept import digest
from instar.problems.language import device_of, evaluating
from instar.receipts.fingerprint import combine, table

Row = tuple[Sequence[int], Sequence[int]]
"""Tokens of a prompt, tokens of what follows."""

FORMAT = "instar-teacher-1"
DATA, FACTS = "logits.bin", "logits.json"
_CHUNK = 32
"""Rows that are computed, written and hashed together."""


class Teacher:
    """Logits of a model at every position of rows that has a next token, in a file.

    Args:
        model: causal, its adapter active or merged. rows: at least one, of two tokens or more each. fill: pads. folder: where the
            file is kept; one that is of another model, other rows or another `keep`, or that was altered, is made anew from where
            it is whole, and so is one that was interrupted.
        keep: so many of the largest logits of each position, with the mass of the others, which then are equal; None keeps all
            (exact). Bytes: 4 V a token, or 8 K + 4.

    Raises DataError for rows without a next token, ModelError for tokens that the model has not, ShapeError, OutputError, and
    DivergedError for logits that are not finite.
    """

    def __init__(self, model: nn.Module, rows: Sequence[Row], fill: int, folder: Path, *, keep: int | None = None) -> None:
        self._rows, self._fill = [torch.tensor([*asked, *answer]) for asked, answer in rows], fill
        if not rows or min(map(len, self._rows)) < 2:
            raise DataError("Distillation expects rows of two tokens or more, at least one of them.")
        one = torch.zeros(1, 1, dtype=torch.int64)
        self.vocabulary = logits(model, one, one + 1).shape[-1]
        if (largest := max(int(row.max()) for row in self._rows)) >= self.vocabulary:
            raise ModelError(f"The rows hold the token {largest}; {type(model).__name__} knows {self.vocabulary}.")
        if keep is not None and not 1 <= keep <= self.vocabulary:
            raise ShapeError(f"keep expects 1 to {self.vocabulary}, the tokens of the vocabulary; received {keep}.")
        self._k = None if keep in (None, self.vocabulary) else keep
        self._starts = np.concatenate([[0], np.cumsum([len(row) - 1 for row in self._rows])])
        self._path = files.folder(folder) / DATA
        self._fill_in(model)
        self._table = np.memmap(self._path, self._kind, "r", shape=(int(self._starts[-1]),))

    @property
    def nbytes(self) -> int:
        """Of the file."""
        return int(self._starts[-1]) * self._kind.itemsize

    def __call__(self, places: Sequence[int], width: int) -> Tensor:
        """Logits [len(places), width, V] of rows, by their places; 0 where a row has no next token."""
        found = torch.zeros(len(places), width, self.vocabulary)
        for b, place in enumerate(places):
            part = self._table[self._starts[place] : self._starts[place + 1]]
            values = torch.from_numpy(np.array(part["values"]))
            if self._k is None:
                found[b, : len(values)] = values
                continue
            rest = torch.from_numpy(np.array(part["rest"])) - math.log(self.vocabulary - self._k)
            ids = torch.from_numpy(part["ids"].astype(np.int64))
            found[b, : len(values)] = rest[:, None].expand(-1, self.vocabulary).scatter(1, ids, values)
        return found

    @property
    def _kind(self) -> np.dtype[Any]:
        if self._k is None:
            return np.dtype([("values", "<f4", (self.vocabulary,))])
        return np.dtype([("values", "<f4", (self._k,)), ("ids", "<i4", (self._k,)), ("rest", "<f4")])

    def _fill_in(self, model: nn.Module) -> None:
        """Compute and write what the file lacks, chunk by chunk; a chunk counts once its hash is written."""
        facts = {"format": FORMAT, "key": self._key(model)}
        starts = list(range(0, len(self._rows), _CHUNK))
        done = self._whole(facts, starts)
        if len(done) == len(starts) and self._path.stat().st_size == self.nbytes:
            return
        try:
            with self._path.open("r+b" if self._path.is_file() else "w+b") as stream:
                stream.seek(
                    int(self._starts[len(done) * _CHUNK] if len(done) < len(starts) else self._starts[-1]) * self._kind.itemsize
                )
                stream.truncate()
                for start in starts[len(done) :]:
                    content = self._computed(model, start).tobytes()
                    stream.write(content)
                    stream.flush()
                    os.fsync(stream.fileno())
                    done.append(hashlib.sha256(content).hexdigest())
                    files.write(self._path.with_name(FACTS), json.dumps({**facts, "chunks": done}))
        except OSError as error:
            raise OutputError(f"Cannot write {self._path}: {error.strerror}. Call again: it goes on from there.") from error

    def _whole(self, facts: dict[str, str], starts: Sequence[int]) -> list[str]:
        """Hashes of the leading chunks that stand in the file as they were written. One pass over the file."""
        path = self._path.with_name(FACTS)
        try:
            told = json.loads(path.read_text("utf-8"))
            hashes = told["chunks"] if {key: told[key] for key in facts} == facts else []
            good: list[str] = []
            with self._path.open("rb") as stream:
                for start, sha256 in zip(starts, hashes, strict=False):
                    size = int(self._starts[min(start + _CHUNK, len(self._rows))] - self._starts[start]) * self._kind.itemsize
                    if hashlib.sha256(stream.read(size)).hexdigest() != sha256:
                        break
                    good.append(sha256)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # nothing there, or nothing of ours
            return []
        return good

    def _computed(self, model: nn.Module, start: int) -> NDArray[Any]:
        rows = self._rows[start : start + _CHUNK]
        z = logits(model, *_batch(rows, self._fill)).float().cpu()
        flat = torch.cat([z[b, : len(row) - 1] for b, row in enumerate(rows)])
        if not bool(torch.isfinite(flat).all()):
            raise DivergedError(f"The logits of {type(model).__name__} for rows {start} to {start + len(rows)} are not finite.")
        made = np.zeros(len(flat), self._kind)
        if self._k is None:
            made["values"] = flat.numpy()
            return made
        top = flat.topk(self._k, dim=-1)
        made["values"], made["ids"] = top.values.numpy(), top.indices.numpy()
        made["rest"] = flat.scatter(1, top.indices, -torch.inf).logsumexp(-1).numpy()
        return made

    def _key(self, model: nn.Module) -> str:
        """Of what decides the logits: the base, the active adapter and its settings, rows, what is kept."""
        name = active(model)
        said = {} if name is None else arguments(require(model, name).adapter)
        lines = {p: line for p, line in table(model).items() if ".adapters." not in p or f".adapters.{name}." in p}
        rows = digest(row.numpy() for row in self._rows)
        return digest([combine(lines), json.dumps([name, said, self._k, self.vocabulary], sort_keys=True, default=str), rows])


def logits(model: nn.Module, ids: Tensor, mask: Tensor) -> Tensor:
    """What a causal model of `transformers` predicts, without gradients and dropout: [B, T] -> [B, T, V]."""
    device = device_of(model)
    with evaluating(model):
        found: Tensor = model(input_ids=ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    return found


def _batch(rows: Sequence[Tensor], fill: int) -> tuple[Tensor, Tensor]:
    ids = nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=fill)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return ids, mask
