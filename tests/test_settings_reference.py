"""docs/operate/settings.md says what the settings are."""

from pathlib import Path

from service.settings.reference import reference
from service.settings.schema import Settings

PAGE = Path(__file__).parent.parent / "docs" / "operate" / "settings.md"


def test_the_page_is_what_the_settings_say():
    assert PAGE.read_text() == reference(), "docs/operate/settings.md is stale: make settings"


def test_every_setting_says_what_it_is():
    assert all(field.description for field in Settings.model_fields.values())
