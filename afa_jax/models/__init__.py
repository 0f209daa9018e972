"""Networks, their zoo and their weights: Flax modules as pure functions of their variables."""
