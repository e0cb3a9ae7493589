"""What every other package may use: command lines, the record of a run, errors, locks, atomic writes."""
