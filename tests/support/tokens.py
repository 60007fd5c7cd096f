"""Tokens files for tests."""

from service.rpc.credentials import new_token, token_entry
from tests.support.certificates import replace


class TokensFile:
    """A tokens file that tests change."""

    def __init__(self, path):
        self.path = path
        self._entries = {}

    def add(self, tenant, *scopes):
        """Adds a token and returns it; call `write` then."""
        token = new_token()
        self._entries[token] = token_entry(token, tenant, scopes)
        return token

    def add_certificate(self, tenant, *scopes, **name):
        """Adds a client by a name of its certificate, san=… or common_name=…."""
        [(key, value)] = name.items()
        entry = f'[[certificate]]\n{key} = "{value}"\ntenant = "{tenant}"\nscopes = {list(scopes)}\n'
        self._entries[value] = entry

    def change_scopes(self, token, tenant, *scopes):
        """Grants a token other scopes."""
        self._entries[token] = token_entry(token, tenant, scopes)

    def remove(self, token):
        """Removes a token, or a certificate by its name."""
        del self._entries[token]

    def text(self):
        """Returns what was added and not removed, as it is written."""
        return "\n".join(self._entries.values())

    def write(self):
        """Writes that; returns the flags of `holdfast serve`."""
        replace(self.path, self.text().encode())
        return ["--tokens-file", str(self.path)]
