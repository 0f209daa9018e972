"""Data sets, the order of their batches, and what happens to a batch on the device."""
