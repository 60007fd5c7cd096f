"""Certificates for tests, made anew by an authority of their own."""

import os

import trustme

from holdfast import Tls


class Authority:
    """Makes certificates and writes them as files into a folder."""

    def __init__(self, folder, name="ca"):
        self._folder = folder
        self._authority = trustme.CA()
        self._client_count = 0
        self.path = folder / f"{name}.pem"
        self._authority.cert_pem.write_to_path(self.path)

    def server(self, folder=None):
        """Writes tls.crt and tls.key for localhost and returns the flags of `holdfast serve`."""
        folder = folder or self._folder
        cert, key = self.issue("localhost", "127.0.0.1")
        for path, content in ((folder / "tls.crt", cert), (folder / "tls.key", key)):
            replace(path, content)
        return ["--tls-cert", str(folder / "tls.crt"), "--tls-key", str(folder / "tls.key")]

    def client(self, *names, common_name=None):
        """Writes the certificate of a client and returns it with this authority as the one to trust."""
        cert, key = self.issue(*names, common_name=common_name)
        self._client_count += 1
        stem = f"{self.path.stem}-client-{self._client_count}"
        paths = [self._folder / f"{stem}.{kind}" for kind in ("crt", "key")]
        for path, content in zip(paths, (cert, key), strict=True):
            path.write_bytes(content)
        return Tls(self.path, *paths)

    def issue(self, *names, common_name=None):
        """Returns a chain of certificates and its key, PEM."""
        issued = self._authority.issue_cert(*names, common_name=common_name)
        chain = b"".join(part.bytes() for part in issued.cert_chain_pems)
        return chain, issued.private_key_pem.bytes()


def replace(path, content):
    """Replaces a file in one step, as careful programs do."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_bytes(content)
    os.replace(fresh, path)
