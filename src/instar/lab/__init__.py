"""What a model computes: studies of models rather than models."""

"""Studies of what a transformer computes."""
