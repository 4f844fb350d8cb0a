"""JSON payloads: checks and encoding."""

import json
from collections.abc import Callable
from decimal import Decimal
from math import isfinite
from typing import Final

import msgspec
from msgspec import Struct

from goqueue.errors import InvalidJobError
from goqueue.models import JsonValue
from goqueue.validation import shown, text_problem

# Far below the recursion limits of the interpreter and the server.
MAX_PAYLOAD_DEPTH: Final = 200


def _plain(value: object) -> object:
    """Return the plain value of a derived type that msgspec can't encode, such as numpy's float64."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, (int, float)):
        return int(value) if isinstance(value, int) else float(value)
    raise TypeError(f"{shown(value)} is not JSON")


_encoder = msgspec.json.Encoder(enc_hook=_plain)


def encode_json(value: object) -> bytes:
    """Return ``value`` (a checked payload, or a Struct) as JSON in UTF-8."""
    try:
        return _encoder.encode(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as exc:
        raise InvalidJobError(f"the payload can't be written as JSON: {exc}") from exc


def encode_with_payload(value: object, payload: JsonValue) -> bytes:
    """Return ``value``, which is or holds ``payload``, as JSON in UTF-8. An `InvalidJobError` names the place in it."""
    try:
        return encode_json(value)
    except InvalidJobError:
        check_payload(payload)
        raise


def encode_checked(value: JsonValue, most: int) -> bytes:
    """Return ``value`` as JSON in UTF-8. Raise `InvalidJobError` as `check_payload` does, or above ``most`` bytes."""
    encoded = encode_with_payload(value, value)
    if not _reads_back(encoded, _decode, value):
        check_payload(value)
    if len(encoded) > most:
        raise InvalidJobError(
            f"the payload has {len(encoded):,} bytes as JSON; GOQUEUE_DATABASE_MAX_PAYLOAD_BYTES allows "
            f"{most:,}: keep large data elsewhere and put a reference to it in the job"
        )
    return encoded


def is_same_json(stored: str, sent: bytes) -> bool:
    """Return True if jsonb's text and the JSON that was sent have the same value, as the server compares jsonb."""
    try:
        return _exact(stored) == _exact(sent)
    except RecursionError:  # stored by other means, and nested more deeply than a payload
        return False


def _exact(text: str | bytes) -> object:
    # jsonb has 1e23 as 100000000000000000000000, which is another float. In a tuple, a 1 doesn't equal a true.
    return json.loads(text, parse_int=_number, parse_float=_number)


def _number(text: str) -> tuple[Decimal]:
    return (Decimal(text),)


class _Sent(Struct, gc=False):
    payload: JsonValue


_decode = msgspec.json.Decoder().decode
_decode_sent = msgspec.json.Decoder(list[_Sent]).decode
_NOT_NESTING: Final = bytes(set(range(256)) - set(b"[]{}"))


def check_payloads(document: bytes, payloads: list[JsonValue]) -> None:
    """Check the payloads in ``document``, a JSON array of jobs, as `check_payload` does."""
    if not _reads_back(document, lambda document: [sent.payload for sent in _decode_sent(document)], payloads):
        for payload in payloads:
            check_payload(payload)


def _reads_back(document: bytes, read: Callable[[bytes], JsonValue], value: JsonValue) -> bool:
    """Return True if ``read`` returns exactly this value from the JSON, so that `check_payload` would pass it.

    This takes half the time of `check_payload`, because no Python code visits the values. A valid value can also return
    False: a tuple is read as a list, and an escaped character can be a NUL.
    """
    try:
        if (b"\\" in document and b"\\u" in document) or read(document) != value:
            return False
    except Exception:  # noqa: BLE001 - a value's own code can raise anything
        return False
    nesting = document.translate(None, _NOT_NESTING)
    for _ in range(MAX_PAYLOAD_DEPTH + 2):  # + 2: the array of a bulk and the job in it.
        if not nesting:
            return True
        nesting = nesting.replace(b"{}", b"").replace(b"[]", b"")
    return False


def check_payload(value: JsonValue) -> None:
    """Raise `InvalidJobError` for a value that jsonb would reject or change. The error names the place in the payload.

    A float without a fraction passes, although jsonb returns it as an equal int.
    """
    if (problem := _payload_problem(value, 0)) is not None:
        place, what = problem
        raise InvalidJobError(f"payload{place if len(place) <= 200 else place[:200] + '…'} {what}")


def _payload_problem(value: object, depth: int) -> tuple[str, str] | None:  # noqa: C901, PLR0911
    # This visits every value of every payload, so the usual types come first and a place is built only for an error.
    if isinstance(value, str):
        return None if value.isascii() and "\0" not in value else text_problem(value)
    if value is None or isinstance(value, int):
        return None
    if isinstance(value, float):
        return None if isfinite(value) else ("", f"is {value}, which JSON has no number for; use None or a string")
    if depth > MAX_PAYLOAD_DEPTH:
        return "", f"is nested more than {MAX_PAYLOAD_DEPTH} levels deep"
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                return "", f"has the key {shown(key)}; a key of a JSON object must be a string"
            if (not key.isascii() or "\0" in key) and (problem := text_problem(key)) is not None:
                return "", f"has the key {shown(key)}, which {problem[1]}"
            if (problem := _payload_problem(item, depth + 1)) is not None:
                return f".{key}{problem[0]}", problem[1]
        return None
    if isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if (problem := _payload_problem(item, depth + 1)) is not None:
                return f"[{index}]{problem[0]}", problem[1]
        return None
    return "", (
        f"is {shown(value)}, which is not JSON; use None, bool, int, float, str, list or dict "
        "(for a datetime its isoformat(), for a UUID its str())"
    )
