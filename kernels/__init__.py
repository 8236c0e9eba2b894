"""Kernels for quantized linears, each with a pure-torch reference beside it. Imports nothing of ours.

``linear`` is the entry: ``prepare`` a stored weight (``weights``) once, then ``linear`` or ``linear_swiglu``. A
prepared weight lies as ``tiles`` says. On an NVIDIA GPU with Triton, ``config`` picks a configuration by device,
format, shape and rows (results of ``tune``, in ``tuned/``), ``launch`` runs it: ``matmul`` for few rows to some
hundred; on a Hopper GPU ``hopper_matmul`` for some hundred and ``wide_matmul`` above, elsewhere ``expand`` and the
vendor's library; all decode with ``decode``. ``tune`` times what ``trial`` found right. Everywhere else
``reference`` and ``nvfp4`` do the same in torch. ``benchmark`` times it all beside bf16 and other libraries.
``decoder_ops`` holds what lies between the matrix products of a decoder layer. ``fp8`` is the other trade: eight
bits for weights and activations both, for the arithmetic of many rows.
"""
