"""Widgets that know nothing of the database: they draw rows, lines and keys they are given, one line at a time."""
