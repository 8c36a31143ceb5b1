"""What a load on the site reports."""

from bench.site_load import _longest_gap


def test_a_gap_from_before_the_load_is_none_of_it() -> None:
    prices = [(0.1, 20_000), (0.2, 20_100), (0.9, 20_900)]
    # A greeting brings the bars of the last minutes, and one that went to nobody else.
    greeted = [1_000, 15_400, 20_000, 20_500]
    assert _longest_gap({"prices": prices, "greeted": greeted}) == 400
    assert _longest_gap({"prices": prices, "greeted": []}) == 800
    assert _longest_gap({"prices": [], "greeted": []}) == 0
