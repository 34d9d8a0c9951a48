"""A live table of a sweep, or of any runs."""
