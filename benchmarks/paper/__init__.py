"""The rows of the paper's two tables, made anew."""
