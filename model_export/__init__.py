"""Makes the step graphs that the service runs: corpus, networks, training, export, parity gate.

Offline. The only place that imports torch and onnx, and only in the modules that need them: `corpus`
does without, so that a server without torch can stream held-out text. `export_step` makes a model of any
network; it is imported when it is asked for.
"""

from typing import Any

__all__ = ["ExportError", "export_step"]


def __getattr__(name: str) -> Any:
    """Imports what needs torch when it is asked for."""
    if name == "export_step":
        from model_export.exporter import export_step

        return export_step
    if name == "ExportError":
        from model_export.export_error import ExportError

        return ExportError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
