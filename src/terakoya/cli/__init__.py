"""One thin typed function per verb; the only place that prints."""
