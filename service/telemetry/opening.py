"""Makes what traces calls, if that is asked for: its library is there only where its extra is installed."""

import importlib
from typing import TYPE_CHECKING

from service.common.start_errors import StartError

if TYPE_CHECKING:
    from service.telemetry.tracing import Tracing


def open_tracing(url: str | None) -> "Tracing | None":
    """Returns what makes spans and sends them to a collector; None without a URL.

    Raises:
        StartError: The extra `otel` is not installed, or it is no URL.
    """
    if url is None:
        return None
    if not url.startswith(("http://", "https://")):
        raise StartError("--traces: expected a URL such as http://localhost:4318/v1/traces")
    try:
        module = importlib.import_module("service.telemetry.tracing")
    except ModuleNotFoundError as error:
        library = str(error.name).partition(".")[0]
        raise StartError(f"--traces needs {library}: pip install 'holdfast[server,otel]'") from None
    tracing: Tracing = module.Tracing(url)
    return tracing
