"""Poolings: layers that make one vector of a bag of instances, for sets, bags with one label, and rows without an order."""
