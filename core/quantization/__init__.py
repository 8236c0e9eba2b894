"""Making a variant: recipes, quantizers, groups of linears as data, folds, searches, compensation and the pipeline.

``groups`` describes a decoder as data, once for each family of checkpoints; nothing here knows more of a model. It,
``scheme``, ``recipe``, ``fit`` (what can be wrong with a recipe for a checkpoint) and ``sensitivity_results``,
``_samples`` and ``_report`` import no torch, so that commands and the app are quick. ``integer`` and ``nvfp4`` are the
number formats: each has a grid (fixed scales, free codes) that rounds whole weights and single columns to the same
bits, and ``rounding`` picks the way of rounding that loses least. ``folds``, ``values`` and ``awq`` scale what the
linears read, ``gptq`` makes up for rounding errors, ``losses`` measures them; ``streams`` runs sequences on through
layers as they are quantized and ``correction`` lets a layer make up for those before it; ``layer`` puts the steps
together and ``pipeline`` takes one layer after another. All of these take tensors and plain data and return them; files
are touched by ``inputs`` (statistics and sequences), ``unfinished`` (layers of a job that was killed), ``request``,
``job`` and ``importing``.
"""
