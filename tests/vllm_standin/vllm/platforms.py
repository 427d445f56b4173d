"""Part of the stand-in."""

from types import SimpleNamespace

current_platform = SimpleNamespace(device_type="cpu", is_sleep_mode_available=lambda: False)
