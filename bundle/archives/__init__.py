"""Works through the volumes of an archive, in one process or in many that share a queue."""
