"""Notebooks as values: one reader and writer, one list of markers, one judge of what code counts."""
