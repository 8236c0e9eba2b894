"""Suites, scores against bf16 and against the truth, the evaluation of a checkpoint, and comparisons.

``suites``, ``text_scores``, ``statistics``, ``image_scores`` and ``comparison`` import no torch, so the
command line and the app may use them; ``likelihood``, ``trajectory``, ``evaluate`` and ``job`` compute with
torch and run inside a job.
"""
