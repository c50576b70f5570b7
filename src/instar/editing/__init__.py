"""Editors: they write facts into the weights of a causal language model, and can take them out again."""
