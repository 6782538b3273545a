"""Arrays become pictures and pages; nothing here knows Lightning."""
