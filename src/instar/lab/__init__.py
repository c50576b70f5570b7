"""What a model computes: studies of models rather than models."""
