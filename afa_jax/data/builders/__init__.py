"""One file a data set; each offers `DATASETS`, a `Builder` by name."""
