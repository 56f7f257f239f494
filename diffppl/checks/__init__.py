"""Checks of single arguments (`arguments`) and of arrays of numbers (`arrays`).

`check_*` functions raise an error that names the argument and the remedy, and return the value in
normal form; `as_*` functions also convert. They depend neither on models nor on processes.
"""
