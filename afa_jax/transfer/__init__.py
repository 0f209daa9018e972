"""The heart: attention, alignment losses, methods and recipes. Arrays in, arrays out."""
