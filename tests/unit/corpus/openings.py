"""How a conversation begins."""

OPENING = [1, 40, 41, 42, 2, 43]
