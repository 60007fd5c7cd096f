"""Keeps secrets out of what is printed."""

import re

MASK = "***"

_HOST = r"(?:[\w.-]+|\[[\da-f:.]+\])(?::\d+)?"
_URL = re.compile(
    r"(?P<scheme>[a-z+]+)://"
    r"(?:(?P<user>[^:@/?#]*)(?P<password>:[^@/?#]*)?@)?"
    rf"(?P<place>(?:{_HOST}(?:,{_HOST})*)?(?:/[\w./-]*)?)"
    r"(?P<query>\?[^@#]*)?"
)


def mask_url(url: str) -> str:
    """Returns a URL as it may be printed: without password and query.

    A URL that is not well-formed is masked whole, since nobody can tell where its password is.
    """
    found = _URL.fullmatch(url)
    if found is None:
        return MASK
    user = "" if found["user"] is None else f"{found['user']}{f':{MASK}' if found['password'] else ''}@"
    query = f"?{MASK}" if found["query"] else ""
    return f"{found['scheme']}://{user}{found['place']}{query}"
