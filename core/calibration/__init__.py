"""What every target linear sees: observers, statistics on disk, merging, coverage and the calibrate job.

``record`` (the JSON half: provenance, token counts, coverage), ``samples`` and ``prose`` (what is run) import no torch,
so calibrations can be listed, shown and checked quickly; ``statistics``, ``sequences``, ``observers``, ``collect``,
``plan``, ``predict`` and ``merge`` compute. ``texts`` and ``text_job`` do for causal LMs what ``collect`` and ``job``
do for a Lance.
"""
