"""Heads that let a new encoder's vectors be compared with stored ones: maps after the fact, and compatible training."""
