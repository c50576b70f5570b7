"""Encoders of texts, and vectors that lie in files."""
