"""What an in-place update changed: one type for editors, adapters, compression and growth.

>>> with updating(model, method="pmet", settings={"layer": 5}, changes=["layers.5.mlp.down.weight"]) as update:  # doctest: +SKIP
...     model.layers[5].mlp.down.weight.data += delta
>>> receipt = update.receipt                                                                           # doctest: +SKIP
>>> receipt.nbytes, receipt.changes, receipt.save("receipts/mine")                                       # doctest: +SKIP
>>> receipt.undo()                                        # the exact bits are back                       # doctest: +SKIP
>>> with editor.edit(model, tokenizer, facts): evaluate(model)   # undone at the end                      # doctest: +SKIP

An update is all or nothing: an exception inside the block puts the model back. An undo is refused when a later update still
stands or the model was changed since. Not covered: tensors that are plain attributes (neither parameter nor buffer), objects
that modules share beside `config`, and the values of gradients.
"""

from __future__ import annotations

from instar.receipts.facts import Change, Facts
from instar.receipts.fingerprint import Entry, fingerprint
from instar.receipts.receipt import Receipt, load
from instar.receipts.store import Recorded, history
from instar.receipts.update import Update, updating

__all__ = ["Change", "Entry", "Facts", "Receipt", "Recorded", "Update", "fingerprint", "history", "load", "updating"]
