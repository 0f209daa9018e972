"""What a trained network is good for: classes of photos, its accuracy on other data, files for other programs."""
