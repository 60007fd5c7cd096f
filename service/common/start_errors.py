"""Why a server does not start. What is wrong with a request is in `holdfast.errors`."""


class StartError(Exception):
    """The server cannot start; the message is one line for its operator.

    If a setting is at fault, the message starts with its flag: so it can be told where the setting is from.
    """


class ConfigurationError(StartError):
    """The settings are wrong by themselves: the same start fails anywhere and at any time."""
