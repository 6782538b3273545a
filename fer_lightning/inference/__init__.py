"""Run trained networks on faces, photos and videos, explain their predictions, and export them."""
