"""Attention heads that differ in how exact their gradient is, and what it costs: the methods behind `lora_limits`."""
