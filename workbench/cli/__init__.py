"""The command line: nouns, then verbs, one module a noun, each imported only when it is used.

stdout is data, stderr is narration, every verb has ``--json``. Exit codes: 0 ok, 1 failed, 2 wrong usage, 3
try again later, 130 interrupted.
"""
