"""A trained network on faces, photos and videos of one's own."""
