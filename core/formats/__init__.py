"""How a variant lies on disk, and what is written for other programs.

``compressed_tensors`` is the layout of every variant the workbench makes. An exporter is a module
``<format>_export`` with ``export(source, output, say) -> Exported``; ``export_request`` has the table of them and
imports none.
"""
