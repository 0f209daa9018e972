"""How well a trained network does on data it has not seen."""
