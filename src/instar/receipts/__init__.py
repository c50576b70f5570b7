"""The parts of a receipt, from the bits up; `instar.receipt` is the door to them."""
