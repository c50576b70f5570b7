"""Optimisers: `torch.optim.Optimizer`s with what the contract asks beyond (`instar.interfaces.Optimizer`)."""
