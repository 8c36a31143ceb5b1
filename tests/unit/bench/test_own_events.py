"""The judge of a trader's stream: what is lost, what comes twice, what a reset excuses."""

from bench.own_events import OwnEvents


def told(*seqs: int) -> OwnEvents:
    events = OwnEvents()
    events.begin("a", 10)
    for seq in seqs:
        events.event(seq)
    return events


def test_events_in_a_row_are_all_there() -> None:
    events = told(11, 12, 13)
    assert (events.told, events.never_told, events.doubled) == (3, 0, 0)


def test_a_gap_is_lost_until_it_is_filled() -> None:
    events = told(11, 14)
    assert events.never_told == 2
    events.event(12)
    assert (events.never_told, events.disordered) == (1, 1)


def test_the_same_number_again_is_doubled() -> None:
    assert told(11, 11).doubled == 1


def test_a_resume_that_skips_events_has_lost_them() -> None:
    events = told(11)
    events.resumed(13)
    assert events.never_told == 2


def test_a_reset_excuses_what_was_away_but_not_a_gap_before_it() -> None:
    events = told(11, 13)
    events.begin("b", 0)  # signed in to another process
    events.event(1)  # of its numbering, before it says so
    events.reset("b", 5)
    events.event(6)
    assert (events.never_told, events.doubled, events.resets) == (1, 0, 1)
    assert (events.epoch, events.last) == ("b", 6)
