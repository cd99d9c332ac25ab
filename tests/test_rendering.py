import pytest

from bmex_bids.rendering import format_age, natural_key, templates


def test_natural_order() -> None:
    names = ["run-10", "run-2", "run-1", "", "acq-b", "run-2b"]
    expected = ["", "acq-b", "run-1", "run-2", "run-2b", "run-10"]
    assert sorted(names, key=natural_key) == expected


@pytest.mark.parametrize(
    ("months", "text"),
    [
        (96.0, "8.0 years"),
        (9, "9.0 months"),
        (0, "0.0 months"),
        (-15 * 7 / 30.4375, "25.0 weeks of gestation"),
        (None, "not known"),
    ],
)
def test_format_age(months: object, text: str) -> None:
    assert format_age(months) == text


def test_html_is_escaped_and_text_is_not() -> None:
    source = "{{ x }}"
    assert templates().from_string(source).render(x="<b>") == "&lt;b&gt;"
    assert templates(escape=False).from_string(source).render(x="<b>") == "<b>"
