"""The models that come with the package, by fingerprint: their check was done before they were shipped.

They are as trusted as the code beside them, and a server that starts on them alone is there a second and
a half earlier. A test holds this list against the files and has each of them checked.
"""

FINGERPRINTS = frozenset(
    bytes.fromhex(fingerprint)
    for fingerprint in (
        "cd659b72b67e33c7d256dde41f24866b914bb02e7c10f10fa4bff85de106394e",  # code-language
        "f4a73689c05bff7899e5170e87e9b482b848a7bd7f5cf9b41688aa8f120ca39b",  # docstring-words
        "0ec0385002d6de73ad6d12b5ce9d233f480fe46ae67725f4a32cb9fa1854e8af",  # python-source
        "f6ec7fe77fa2bcf0193614136887c7a53eb190fa12b869fa2baa010d54417754",  # python-source-elman
        "207509211cd09e548b0b4a73a168c2e876fddebf3b0436ba0ae7da752f49fea1",  # python-source-feedforward
        "0a322c722b03b65a837e8d1a38f1af93b8b0b64277fa62cfa326f8e1b3d8e32a",  # sensor-anomaly
        "3dc683c7018cdfc1ae65885d2b9140b488a5b0b99e88d5123ba487edfdab3a4f",  # sound-events
    )
)
