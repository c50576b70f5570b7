"""What a change of the encoder costs, arm by arm: measured on a sample, predicted with intervals, and checked."""
