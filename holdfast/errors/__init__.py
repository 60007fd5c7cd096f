"""What can go wrong with a call, one class for each reason; the service raises them and so does its client.

`HoldfastError`
  `ServiceError`: a reason of the contract. Below it what is said of a session (`holdfast.errors.session`),
    and of a request or the service (`holdfast.errors.service`).
  What the client raises by itself (`holdfast.errors.client`).

A class has everything about its reason: gRPC's code, whether a retry helps, whether it counts against the
objective, and as docstring its section of docs/errors.md. The modules import the standard library alone.

`HoldfastError.retryable` says whether the same call may succeed later. The client itself retries such
errors within the call's time limit, so one that reaches the caller has lasted that long. What became of the
tokens is in `pending` and `not_applied`, and at the end of the message.
"""

from holdfast.errors.base import HoldfastError as HoldfastError
from holdfast.errors.base import ServiceError as ServiceError
from holdfast.errors.client import *  # noqa: F403 - so that a new class is written once
from holdfast.errors.service import *  # noqa: F403
from holdfast.errors.session import *  # noqa: F403
