"""What is here, in the formats of others: records as a table, problems as benchmarks."""
