"""Training of a prior from a folder of images."""
