"""Problems whose posterior is known, the methods held against them, and what is measured."""
