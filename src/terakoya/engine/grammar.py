"""Placeholder."""


class Grammar: ...


class Matcher: ...
