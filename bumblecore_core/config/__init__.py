"""The run's configuration."""
