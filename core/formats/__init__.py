"""How a variant lies on disk. ``compressed_tensors`` is the layout of every variant the workbench makes."""
