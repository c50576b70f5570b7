"""Forecasters: from repeating the last value to transformers, all behind `instar.interfaces.Forecaster`."""
