"""Making a variant: recipes, the quantizer, groups of linears as data, folds, the scale search and the
pipeline.

``scheme`` and ``recipe`` import no torch, so that recipes can be listed quickly. ``integer``, ``folds``,
``awq`` and ``pipeline`` take tensors and plain data and return them; files and the database are touched by
``job`` only.
"""
