"""MONAI Label app of the bundle: reconstructs volumes and trains on a datastore's images, over REST."""
