"""The floor under every room: command lines, the record of a run, errors, locks, atomic writes."""
