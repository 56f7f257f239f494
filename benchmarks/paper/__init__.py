"""The rows of the two tables of the paper."""
