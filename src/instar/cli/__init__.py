"""The command line. `main` is the entry point; no command imports torch before it needs it."""

from __future__ import annotations

import sys
import traceback

from instar.errors import InstarError


def main() -> None:
    """Run the command line: an InstarError is one clear message and its exit code, an interrupt is 130."""
    from instar.cli.app import app

    try:
        app(standalone_mode=True)
    except InstarError as error:
        sys.stderr.write(f"instar: {error}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.stderr.write("instar: interrupted\n")
        sys.exit(130)
    except BrokenPipeError:  # `instar list | head`
        sys.stderr.close()
        sys.exit(0)
    except MemoryError:
        sys.stderr.write("instar: out of memory; give it fewer items at a time, or a machine with more memory\n")
        sys.exit(InstarError.exit_code)
    except Exception:  # a defect of ours must not look like an answer: code 1 says "no"
        traceback.print_exc()
        sys.exit(InstarError.exit_code)
