"""Start of every process: settings, with readable errors, and signals that end it."""

from __future__ import annotations

import re
import signal
from types import FrameType

from pydantic import ValidationError
from pydantic_settings import SettingsError

from on_api.core.errors import StartupError
from on_api.core.settings import Settings, UnknownSettingError, UnreadableCredentialError


def load_settings(**given: object) -> Settings:
    """Load settings from the environment, `$CREDENTIALS_DIRECTORY` and `.env`; `given` ones take
    precedence. Raises `StartupError` naming each wrong variable, never its value."""
    try:
        return Settings(**given)  # type: ignore[arg-type]  # checked by Pydantic
    except (UnknownSettingError, UnreadableCredentialError) as error:
        raise StartupError(f"The settings are invalid: {error}.") from None
    except SettingsError as error:
        # Its text names the outermost field only: cors, of ON_API_CORS__ORIGINS.
        [field] = re.findall(r'field "(\w+)"', str(error)) or ["?"]
        raise StartupError(
            f"The settings are invalid. ON_API_{field.upper()}: not valid JSON; write a list"
            ' as ["https://a.example", "https://b.example"].'
        ) from None
    except ValidationError as error:
        mistakes = []
        for mistake in error.errors(include_url=False, include_input=False, include_context=False):
            name = "__".join(str(step) for step in mistake["loc"]).upper()
            words = mistake["msg"].removeprefix("Value error, ")
            mistakes.append(f"ON_API_{name}: {words}" if name else words)
        raise StartupError(f"The settings are invalid. {'; '.join(mistakes)}.") from None


def end_cleanly_on_signal() -> None:
    """Make SIGTERM end the command as Ctrl-C does: what it started is stopped first.

    SIGINT is set too: in a script's background (`on-api node run &`) it is inherited as ignored,
    and Python leaves it so.
    """
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, _interrupt)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
