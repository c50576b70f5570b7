"""What was fetched, as it was: files named by their SHA-256, and a manifest to which lines are added and never changed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from instar import files
from instar.errors import DataError, OutputError

_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class RawItem:
    """A line of the manifest: one content that one address of one source once had, or an answer without one."""

    source: str
    url: str
    retrieved_at: str
    """ISO 8601, UTC."""
    status: int
    sha256: str
    """"" where nothing was kept."""
    size: int
    etag: str = ""
    content_type: str = ""
    waits: bool = False
    """Whether its round is over only with a `Round` after it. In stores older than those, nothing waits."""

    @property
    def retrieved(self) -> datetime:
        """The instant."""
        return datetime.fromisoformat(self.retrieved_at)


@dataclass(frozen=True)
class Round:
    """A line of the manifest: every page of a round came, and what stands before it of the source waits no longer."""

    source: str
    began: str
    """ISO 8601, UTC: before the first page of the round was asked."""


class RawStore:
    """The folders `raw/` and the file `manifest.jsonl` of a store. One writer at a time, which the catalogue's lock sees to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = folder / "manifest.jsonl"
        self._latest: dict[tuple[str, str, bool], str] | None = None

    def path(self, sha256: str) -> Path:
        """Where a content stands."""
        return self.folder / "raw" / sha256[:2] / sha256

    def items(self) -> list[RawItem]:
        """All lines but those of rounds, oldest first.

        What a killed writer left unfinished at the end was never promised, and is passed over. Raises DataError for any other
        line that is none of ours.
        """
        return [line for line in self._lines() if isinstance(line, RawItem)]

    def known(self, source: str) -> tuple[datetime | None, dict[str, str]]:
        """Since when a source is to be asked, and the entity tag that each of its addresses had last.

        Since its last complete round began: one that was killed, or of which a page failed, is asked again whole.
        """
        since: datetime | None = None
        tags: dict[str, str] = {}
        for line in self._lines():
            if line.source != source:
                continue
            if isinstance(line, Round):
                since = datetime.fromisoformat(line.began)
            elif line.sha256:
                tags[line.url] = line.etag  # of the newest content alone, or "as before" would be said of another one
                if not line.waits:
                    since = max(since or line.retrieved, line.retrieved)
        return since, {url: tag for url, tag in tags.items() if tag}

    def finish(self, source: str, began: datetime) -> None:
        """Every page of a round came. It is written down where something waits for it. Raises OutputError."""
        lines = [line for line in self._lines() if line.source == source]
        if lines and isinstance(lines[-1], RawItem) and lines[-1].waits:
            self._append(Round(source, began.astimezone(UTC).isoformat()))

    def add(self, item: RawItem, body: bytes) -> bool:
        """Keep a content and its line, in this order, durably. Returns whether it is new; raises OutputError (nothing is lost).

        The content that the address had last is not written again, so that asking twice is asking once. An earlier one that
        comes back is a line of its own: it is what the address says now. Of answers without a content, the first is kept.
        """
        if self._latest is None:
            self._latest = {(old.source, old.url, bool(old.sha256)): old.sha256 for old in self.items()}
        key = (item.source, item.url, bool(item.sha256))
        if self._latest.get(key) == item.sha256:
            return False
        if item.sha256:
            if hashlib.sha256(body).hexdigest() != item.sha256:
                raise DataError(f"{item.url}: the content is not what its line says, {item.sha256[:12]}.")
            path = self.path(item.sha256)
            files.folder(path.parent)
            if not path.is_file():
                files.write(path, body)
        self._append(item)
        self._latest[key] = item.sha256
        return True

    def body(self, sha256: str) -> bytes:
        """A content. Raises DataError where it is gone or not what its name says."""
        try:
            data = self.path(sha256).read_bytes()
        except OSError as error:
            raise DataError(
                f"{self.path(sha256)} cannot be read: {error.strerror}. Restore it from a backup of the store."
            ) from error
        if hashlib.sha256(data).hexdigest() != sha256:
            raise DataError(f"{self.path(sha256)} was changed: its bytes are not those of its name. Restore it from a backup.")
        return data

    def problems(self) -> Iterator[str]:
        """What of the manifest cannot be found or was changed."""
        for sha256 in sorted({item.sha256 for item in self.items() if item.sha256}):
            try:
                self.body(sha256)
            except DataError as error:
                yield str(error)

    def _append(self, made: RawItem | Round) -> None:
        line = json.dumps(asdict(made), ensure_ascii=False).encode() + b"\n"
        files.folder(self.folder)
        try:
            file = os.open(self.manifest, os.O_CREAT | os.O_RDWR | os.O_APPEND, 0o644)
            try:
                size = _whole_lines(self.manifest)
                os.ftruncate(file, size)
                try:
                    if os.write(file, line) < len(line):  # not through a buffer, which would try the rest again when it is closed
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    os.fsync(file)
                except OSError:
                    os.ftruncate(file, size)
                    raise
            finally:
                os.close(file)
        except OSError as error:
            raise OutputError(f"Cannot write {self.manifest}: {error.strerror}. What stood there before is unchanged.") from error

    def _lines(self) -> list[RawItem | Round]:
        try:
            data = self.manifest.read_bytes()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DataError(f"{self.manifest} cannot be read: {error.strerror}.") from error
        return [self._line(line, number) for number, line in enumerate(data.split(b"\n")[:-1], 1)]

    def _line(self, line: bytes, number: int) -> RawItem | Round:
        try:
            row = json.loads(line)
            made = Round(**row) if "began" in row else RawItem(**row)
            sha256, when = ("", made.began) if isinstance(made, Round) else (made.sha256, made.retrieved_at)
            if (sha256 and not _SHA256.fullmatch(sha256)) or datetime.fromisoformat(when).tzinfo is None:
                raise ValueError("the hash is none, or the time has no zone")
        except (ValueError, TypeError) as error:
            raise DataError(
                f"{self.manifest}, line {number}, is damaged: {error}. Restore it from a backup of the store."
            ) from error
        return made


def _whole_lines(path: Path) -> int:
    """Bytes up to the end of the last whole line."""
    data = path.read_bytes()
    return data.rfind(b"\n") + 1
