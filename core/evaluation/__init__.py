"""Suites, scores against bf16 and against the truth, the evaluation of a checkpoint, and comparisons.

``samples``, ``suites``, ``suite_files``, ``lance_samples``, ``own_samples``, ``visuals``, ``overlap``, ``text_scores``,
``image_scores``, ``statistics``, ``media``, ``conditions``, ``baseline``, ``subject``, ``choice``, ``comparison``,
``report`` and ``documents`` import no torch, so the command line and the app may use them. ``requests``, ``extent``,
``footprint``, ``fit``, ``likelihood``, ``trajectory``, ``answers``, ``drawings``, ``evaluate``, ``job`` and ``single``
compute with it.
"""
