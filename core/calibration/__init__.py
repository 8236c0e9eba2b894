"""What every target linear sees: observers, statistics on disk, merging, coverage and the calibrate job.

``record`` (the JSON half: provenance, token counts, coverage) imports no torch, so calibrations can be listed
and shown quickly; ``statistics``, ``observers`` and ``merge`` compute.
"""
