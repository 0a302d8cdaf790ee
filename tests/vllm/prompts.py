"""Prompts that never share a prefix unless asked to. In the tiny model a token is a byte, so length is in tokens."""

import random

from pair import BLOCK

RNG = random.Random(20260401)
LETTERS = "abcdefghijklmnopqrstuvwxyz ,."
# "user: " before the message, "\nassistant: " after it: what the model's chat template adds.
CHAT_OVERHEAD = len("user: ") + len("\nassistant: ")
# Below, at and above a block boundary, one token, and many blocks with a partial last one.
LENGTHS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 23 * BLOCK + 7)


def prompt(tokens, chat=False):
    """Text whose request has exactly `tokens` tokens; a chat has at least one more than its template."""
    count = max(1, tokens - CHAT_OVERHEAD) if chat else tokens
    return "".join(RNG.choice(LETTERS) for _ in range(count))
