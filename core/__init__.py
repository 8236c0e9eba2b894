"""The library under lance-workbench: checkpoints, the native Lance, quantizers, evaluation, the store and the jobs.

Imports neither textual nor workbench. Modules that compute import torch; ``core.store``, ``core.jobs``, ``core.errors``
and ``core.files`` never do, so that the command line and the app start fast.
"""
