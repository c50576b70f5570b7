"""The parts of a receipt; `instar.receipt` is the page to read. From the bits up, each file knows only those above it:

| file | what it is |
|---|---|
| `bits` | a tensor as bits: copy, compare, digest |
| `fingerprint` | a model as a table of digests, and one digest of the table |
| `facts` | what a receipt says, and its JSON |
| `structure` | a model beside its tensors: modules, attributes, hooks, by identity |
| `snapshot` | a model at one moment, and the two sides of an update, which can be exchanged |
| `standing` | which updates stand on a model, in which order |
| `placing` | whether a model is on the side that a receipt expects, and where the bits go |
| `store` | receipts in folders, and the history of a model |
| `receipt` | the receipt: undo, apply, save |
| `update` | the transaction that makes one |
"""
