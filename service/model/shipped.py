"""The models that come with the package, by fingerprint: their check was done before they were shipped.

They are as trusted as the code beside them, and a server that starts on them alone is there a second and
a half earlier. A test holds this list against the files and has each of them checked.
"""

FINGERPRINTS = frozenset(
    bytes.fromhex(fingerprint)
    for fingerprint in (
        "e6656497104b9df638deee09a2772c70bc74fff871e434b4b730784bff19599a",  # code-language
        "f4a73689c05bff7899e5170e87e9b482b848a7bd7f5cf9b41688aa8f120ca39b",  # docstring-words
        "0ec0385002d6de73ad6d12b5ce9d233f480fe46ae67725f4a32cb9fa1854e8af",  # python-source
        "f6ec7fe77fa2bcf0193614136887c7a53eb190fa12b869fa2baa010d54417754",  # python-source-elman
        "207509211cd09e548b0b4a73a168c2e876fddebf3b0436ba0ae7da752f49fea1",  # python-source-feedforward
        "8e6263d4c025a82eb3376d2df2c30231eb321a953876ed0ed3d2e19227de0390",  # sensor-anomaly
        "fb288743112d85563098a816148d97bd7c2665b50d0b95f4e082e40d35d0a58e",  # sound-events
    )
)
