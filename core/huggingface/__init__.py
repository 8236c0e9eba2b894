"""Checkpoints that transformers' AutoModelForCausalLM loads: structure as data, loading, and texts to run them on.

``structure`` reads headers and JSON only and imports no torch; ``loading`` builds transformers' own model and fills it
tensor by tensor. Nothing here writes files or knows of the database.
"""
