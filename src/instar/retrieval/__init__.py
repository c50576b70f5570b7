"""Indexes of stored vectors that stay searchable while their encoder changes."""
