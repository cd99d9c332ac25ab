"""Methods that BME-X was published beside, trained and run on the same data."""
