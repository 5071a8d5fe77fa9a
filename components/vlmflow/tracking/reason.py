"""What a tracking server's failure comes down to, in a few words."""

import re

_MAX_CHARACTERS = 300
_OWN = ("MlflowException", "RestException")  # their texts say enough
_UNREACHED = re.compile(r"API request to (\S+?)/api/\S+ failed with exception")
_CREDENTIALS = re.compile(r"//[^/@\s]+@")


def reason_of(error: Exception) -> str:
    """One line; a server that cannot be reached is told by its address alone."""
    text = _CREDENTIALS.sub("//", (str(error).splitlines() or [""])[0])
    if found := _UNREACHED.match(text):
        return f"the tracking server at {found[1]} cannot be reached"
    name = type(error).__name__
    return (text if text and name in _OWN else f"{name}: {text}")[:_MAX_CHARACTERS]
