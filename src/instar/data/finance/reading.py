"""What adapters share: files and addresses are fetched alike, and texts are decoded without loss."""

from __future__ import annotations

import glob
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from instar.data.finance.sources import Item
from instar.data.finance.transport import FetchError, Response, Transport
from instar.errors import DataError


def listed(locations: Sequence[str], cursor: Mapping[str, str], name: str) -> Iterator[Item]:
    """Addresses as they are, and the files of each pattern, sorted. Raises DataError where a pattern has none."""
    if isinstance(locations, str) or not locations or not all(isinstance(one, str) for one in locations):
        raise DataError(f"The source {name} expects a list of addresses or files; received {locations!r}.")
    for location in locations:
        if location.startswith(("http://", "https://")):
            yield Item(location, cursor.get(location, ""))
            continue
        found = sorted(glob.glob(str(Path(location).expanduser()), recursive=True))  # noqa: PTH207 - patterns may be absolute
        if not found:
            raise DataError(f"The source {name}: there is no file {location}.")
        yield from (Item(path) for path in found)


def fetched(item: Item, transport: Transport) -> Response:
    """The bytes of an address or a file. Raises FetchError."""
    if item.location.startswith(("http://", "https://")):
        return transport.get(item.location, {"If-None-Match": item.etag} if item.etag else {})
    try:
        return Response(item.location, 200, Path(item.location).read_bytes())
    except OSError as error:
        raise FetchError(f"{item.location} cannot be read: {error.strerror}.") from error


def decoded(body: bytes, where: str) -> str:
    """UTF-8, or what its byte-order mark says. Raises DataError with the byte that is none."""
    for mark, encoding in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"", "utf-8-sig")):
        if body.startswith(mark):
            try:
                return body.decode(encoding)
            except UnicodeDecodeError as error:
                raise DataError(f"{where} is no text in {encoding.upper()} (byte {error.start}): {error.reason}.") from error
    raise AssertionError("every text starts with nothing")


def number(text: object) -> float | None:
    """A finite number, or None where there is none. Raises ValueError for anything else."""
    if text is None or (isinstance(text, str) and text.strip().lower() in ("", "nan", "null", "none", "n/a")):
        return None
    if isinstance(text, bool) or not isinstance(text, str | int | float):
        raise ValueError(f"{str(text)[:30]!r} is no number")
    try:
        value = float(text.replace(",", "") if isinstance(text, str) else text)
    except OverflowError as error:
        raise ValueError(f"{str(text)[:30]}… is too large") from error
    if value - value != 0:
        raise ValueError(f"{text!r} is not finite")
    return value
