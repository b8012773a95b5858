"""Stores, chosen by URL: `urls` opens them, and loads the driver."""
