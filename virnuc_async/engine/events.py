"""What an engine reports while it works."""


class EngineEvents:
    """The events of an engine; the methods do nothing until they are overridden."""

    def device_ready(self, device: str) -> None:
        """Called when *device* is loaded and warmed up."""

    def device_closed(self, device: str, peak_memory: int) -> None:
        """Called when *device* has been freed, with the most bytes of its memory that were in use."""
