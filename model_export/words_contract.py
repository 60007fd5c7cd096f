"""The contract.toml of a network over subwords. Pure."""

import hashlib

from model_export.contract import SWITCH

TOKENIZER_FILE = "tokenizer.json"


def words_contract(tokenizer: str, size: int, hidden: int, more: str = "", *, start: int | None) -> str:
    """Returns the contract of a graph of `words_graph`, with the tokenizer beside it.

    Args:
        tokenizer: What the file has.
        size: Entries of it.
        hidden: Units of h.
        more: Further tables.
        start: Id that stands before every text; None without one.
    """
    start_line = "" if start is None else f"start = {start}\n"
    return f"""\
contract_version = 1
description = "English of docstrings: the next subword after each that has ended. Text in, text out."

[input]
name = "token"
axes = ["time", "batch"]
kind = "token_id"

[vocabulary]
kind = "tokenizer"
file = "{TOKENIZER_FILE}"
sha256 = "{hashlib.sha256(tokenizer.encode()).hexdigest()}"
size = {size}
{start_line}
[[state]]
name = "h"
input = "h"
output = "h_next"
axes = ["batch", {hidden}]

[[output]]
name = "logits"
axes = ["time", "batch", {size}]
role = "logits"
description = "of the next subword, after the last one that has ended"

[[output]]
name = "token_log_prob"
axes = ["time", "batch"]
role = "token_log_prob"
switch = "{SWITCH}"
units = "nats"
description = "sum over the subwords that the byte has ended"

{more}"""
