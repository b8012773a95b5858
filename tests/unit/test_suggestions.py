"""Suggestions for misspelled names."""

from __future__ import annotations

from flowfabric_worker.engine.suggestions import did_you_mean


def test_similar_name_is_suggested() -> None:
    assert did_you_mean("mial", ["etl", "mail"]) == " Did you mean 'mail'?"


def test_unlike_names_are_not_suggested() -> None:
    assert did_you_mean("x", ["etl", "mail"]) == did_you_mean("x", []) == ""


def test_full_name_of_a_similar_short_name_is_suggested() -> None:
    assert did_you_mean("pst", ["post"], {"post": "blog.post"}) == " Did you mean 'blog.post'?"
