"""How exceptions are stored."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shardflow.core.failure import LIMIT, describe, from_json, to_json, type_name
from shardflow.errors import ShardflowError, StepFailed
from shardflow.model import ErrorInfo


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_an_exception_is_stored_with_type_message_and_traceback() -> None:
    info = describe(raised(KeyError("x")))
    assert (info.type, info.message) == ("KeyError", "'x'")
    assert info.traceback.startswith("Traceback (most recent call last)")
    assert info.traceback.endswith("KeyError: 'x'\n")


def test_classes_outside_of_the_builtins_have_their_module() -> None:
    class Local(Exception):
        pass

    assert type_name(ShardflowError) == "shardflow.errors.ShardflowError"
    assert type_name(ValueError) == "ValueError"
    assert type_name(Local).endswith("<locals>.Local")
    assert "test_failure." in type_name(Local)


def test_of_a_failed_step_the_steps_own_error_is_stored_with_the_step_named() -> None:
    failed = StepFailed("charge", "ConnectionError", "no route", "the trace", 5)
    assert describe(failed) == ErrorInfo("ConnectionError", "step 'charge': no route", "the trace")


def test_an_exception_that_cannot_be_turned_into_text_is_stored_all_the_same() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    info = describe(raised(Mute()))
    assert info.message == "(the exception could not be turned into text)"
    assert "Mute" in info.traceback


@pytest.mark.parametrize("size", [LIMIT, LIMIT + 1, 10 * LIMIT])
def test_long_messages_keep_their_beginning_and_long_tracebacks_their_end(size: int) -> None:
    info = describe(raised(ValueError("x" * (size - 1) + "!")))
    assert len(info.message) <= LIMIT
    assert len(info.traceback) <= LIMIT
    assert info.traceback.endswith("!\n")


@given(st.text(), st.text(), st.text())
def test_the_stored_form_is_ascii_without_nul_and_comes_back(kind: str, message: str, trace: str) -> None:
    info = ErrorInfo(kind, message, trace)
    text = to_json(info)
    assert text.isascii()
    assert "\0" not in text
    assert from_json(text) == info


def test_a_stored_form_without_a_traceback_is_read() -> None:
    assert from_json('{"type": "E", "message": "m"}') == ErrorInfo("E", "m", "")


def test_lone_surrogates_and_nul_survive() -> None:
    info = ErrorInfo("E", "\0 \ud800", "")
    assert from_json(to_json(info)) == info
