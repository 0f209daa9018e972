"""One file a network family; each offers `NETWORKS`, its members by name."""
