import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mirror_edge.errors import OptionError
from mirror_edge.stops import StopStrings


def cut_at_first(text: str, stops: list[str]) -> str:
    """The oracle: read character by character until the text ends with a stop string."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - len(max(ending, key=len))]
    return text


few = st.text("abc", max_size=12)


@given(st.lists(few, max_size=8), st.lists(st.text("abc", min_size=1, max_size=4), max_size=4))
@example(["abc"], ["bcd", "b"])
def test_cuts_before_the_first_complete_stop_in_any_chunking(
    chunks: list[str], stops: list[str]
) -> None:
    stream = StopStrings(stops)
    seen, emitted, hit = "", "", False
    for chunk in chunks:
        emit, hit = stream.push(chunk)
        seen, emitted = seen + chunk, emitted + emit
        held = seen[len(emitted) :]
        if not hit:
            begun = [
                stop[:n] for stop in stops for n in range(len(stop)) if seen.endswith(stop[:n])
            ]
            assert held == max(begun, key=len, default="")
    assert emitted + stream.finish() == cut_at_first(seen, stops)
    assert hit == any(stop in seen for stop in stops)


def test_a_stop_spread_over_pushes_is_cut() -> None:
    stream = StopStrings(["\nUser:"])
    assert stream.push("Hi.\nUs") == ("Hi.", False)
    assert stream.push("er") == ("", False)
    assert stream.push(": and") == ("", True)
    assert stream.push("more") == ("", True)
    assert stream.finish() == ""


def test_a_beginning_that_came_to_nothing_is_given_out() -> None:
    stream = StopStrings(["END"])
    assert stream.push("the EN") == ("the ", False)
    assert stream.push("TRY EN") == ("ENTRY ", False)
    assert stream.finish() == "EN"


def test_of_overlapping_stops_the_first_to_be_complete_counts() -> None:
    assert StopStrings(["bcd", "c"]).push("abcd") == ("ab", True)
    assert StopStrings(["c", "bc"]).push("abcd") == ("a", True)


def test_a_self_overlapping_stop_is_found() -> None:
    stream = StopStrings(["aab"])
    assert stream.push("aa") == ("", False)
    assert stream.push("a") == ("a", False)
    assert stream.push("b") == ("", True)


def test_one_stop_may_be_given_bare() -> None:
    assert StopStrings("END").push("the END") == ("the ", True)


def test_without_stops_nothing_is_held_back() -> None:
    assert StopStrings([]).push("abc") == ("abc", False)


@pytest.mark.parametrize("stops", ["", [""], ["a", ""]])
def test_an_empty_stop_is_refused(stops: str | list[str]) -> None:
    with pytest.raises(OptionError, match="must be a non-empty string"):
        StopStrings(stops)
