"""Makes the step graphs that the service runs: corpus, networks, training, export, parity gate.

Offline. The only place that imports torch and onnx, and only in the modules that need them: `corpus`
does without, so that a server without torch can stream held-out text.
"""
