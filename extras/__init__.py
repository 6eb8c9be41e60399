"""Programs around nanoMMA that it works without: run them as `python -m extras.NAME`."""
