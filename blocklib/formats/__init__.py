"""The files of foreign engines: what each can carry, and how a child is written in its form."""
