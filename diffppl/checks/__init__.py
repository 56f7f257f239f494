"""Checks of arguments: single ones (`arguments`) and arrays of numbers (`arrays`).

`check_*` functions raise an error that names the argument and the remedy, and return the value in
its normal form; `as_*` functions convert as well. The checks need neither a model nor a process.
"""
