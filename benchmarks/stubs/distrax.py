"""In the place of distrax: every name is `object`, to be imported or inherited, not used."""


def __getattr__(name: str) -> type:
    if name.startswith("__"):
        raise AttributeError(name)
    return object
