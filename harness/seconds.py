"""Times and amounts as people say them."""


def duration(seconds: float) -> str:
    """Seconds in words.

    >>> duration(42), duration(150), duration(7500)
    ('42 s', '2 min 30 s', '2 h 05 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def amount(number: int, noun: str) -> str:
    """A number of things in words.

    >>> amount(1, "trial"), amount(2000, "trial")
    ('1 trial', '2000 trials')
    """
    return f"{number} {noun}{'s' if number != 1 else ''}"
