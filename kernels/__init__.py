"""Kernels for quantized linears, each with a pure-torch reference beside it. Imports nothing of ours."""
