"""The command line as records and reports may show it."""

from __future__ import annotations

import shlex
import sys

from instar.doors.wire import bare


def command() -> str:
    """What was typed, without passwords and keys of addresses: reports are posted where others read."""
    return shlex.join(["instar", *map(bare, sys.argv[1:])])
