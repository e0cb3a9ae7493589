"""The bundle's own code: networks, losses, engines, handlers, inferers, metrics and data."""
