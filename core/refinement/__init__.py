"""Refinement by gradients: a finished variant's scales and norms, learned so that it says what the original said.

``samples`` draws a calibration's samples again, ``objectives`` asks the original about them, ``gains`` is what is
learned and how gradients reach it, ``learning`` learns, ``step`` does all of it to an unfinished variant's files and
``predict`` foretells what that takes. What a recipe asks for is ``core.quantization.refine``. The job ``quantize`` and
its request come here; nothing here knows them.
"""
