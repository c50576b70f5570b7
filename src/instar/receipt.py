"""What an in-place update changed: the one type that editors, adapters, compression and growth return.

Whoever changes a model does so inside `updating`, and returns the receipt:

>>> import torch
>>> def scale(model, factor):
...     with updating(model, method="scale", settings={"factor": factor}, changes=["0.weight"]) as update:
...         model[0].weight.data *= factor
...     return update.receipt

Whoever asked for the change can look at it, take it back to the bit, and make it again:

>>> model = torch.nn.Sequential(torch.nn.Linear(2, 2))
>>> receipt = scale(model, 2.0)
>>> receipt
<Receipt ...: 1 tensors, 16 bytes, ... s>
>>> [change.name for change in receipt.changes], receipt.facts.settings
(['0.weight'], {'factor': 2.0})
>>> receipt.undo()
>>> receipt.apply()
>>> with receipt.reverted():
...     pass  # here the model is as before
>>> with scale(model, 0.5):
...     pass  # undone at the end of the block

A receipt on disk is a folder that any tool reads, and nothing in it is trusted: `receipt.save(folder)` and `load(folder)`, or
`receipt.record(model_folder)` as the next line of its `history`, which `instar history MODEL` prints.

What holds (and `instar.checks.receipt.check_receipts` checks of any update):
- All or nothing: an exception or Ctrl-C inside the block puts bits, modules, flags and hooks back.
- Nothing hidden: a tensor that is written in place without being named in `changes=` is an error. A tensor that is replaced
  (a new Parameter, a new `.data`) needs no name, and no copy.
- Undo gives the exact bits, last in first out; it is refused when the model was changed since.

Not covered: tensors that are plain attributes (neither parameter nor buffer), objects that modules share beside `config`, the
values of gradients, and two threads that update one model at a time.
"""

from __future__ import annotations

from instar.receipts.facts import Change, Facts
from instar.receipts.fingerprint import Entry, fingerprint
from instar.receipts.receipt import Receipt, load
from instar.receipts.store import Recorded, history
from instar.receipts.update import Update, updating

__all__ = ["Change", "Entry", "Facts", "Receipt", "Recorded", "Update", "fingerprint", "history", "load", "updating"]
