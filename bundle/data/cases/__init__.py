"""The volumes of a data set: finding, splitting by patient, summaries."""
