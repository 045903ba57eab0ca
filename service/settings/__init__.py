"""The settings of the service: one section a subject, each setting with its consequence.

This package is ground: it imports nothing of the service. Kinds of stores bring sections of their own
(`service.settings.store_kinds`).
"""

from service.settings.base import PREFIX
from service.settings.settings import Settings, SettingsError, load_settings, named_folder

__all__ = ["PREFIX", "Settings", "SettingsError", "load_settings", "named_folder"]
