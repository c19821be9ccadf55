"""What the integration tests share: clusters out of template databases, workers that always stop, waiting."""
