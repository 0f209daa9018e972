"""What a trained network shows: activation maps, attention, distances, generalisation, parts, dissection."""
