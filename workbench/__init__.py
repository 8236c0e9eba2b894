"""The terminal app and the command line: clients of ``core.store`` and ``core.jobs`` that never import torch."""
