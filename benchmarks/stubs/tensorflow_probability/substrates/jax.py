"""Distributions and bijectors of which every one is `object`, to be inherited, not used."""


class Names:
    """Has every name."""

    def __getattr__(self, name: str) -> type:
        return object


distributions = bijectors = Names()
