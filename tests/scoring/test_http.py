"""What stands before every page and server: names, other sites' pages, and the token, as a browser sends them."""

import base64

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from rs_rlhf.scoring.http import LocalNames, OwnPages, TokenAsked, token_given


def client(*middleware):
    app = FastAPI()
    app.add_api_route("/", lambda: "hello", methods=["GET", "POST"])
    for kind, options in middleware:
        app.add_middleware(kind, **options)
    return TestClient(app, base_url="http://localhost:8000")


def test_pages_of_other_sites_ask_nothing():
    page = client((OwnPages, {}))
    assert page.post("/").status_code == 200 and page.get("/").status_code == 200
    assert page.post("/", headers={"Origin": "http://localhost:8000"}).status_code == 200
    for origin in (
        "http://example.org",
        "http://localhost:8001",
        "http://localhost",
        "null",
        "https://localhost:80001",
    ):
        reply = page.post("/", headers={"Origin": origin})
        assert reply.status_code == 403 and "not answered" in reply.json()["error"], origin


def test_other_names_are_refused():
    page = client((LocalNames, {}))
    assert page.get("/").status_code == 200
    assert page.get("/", headers={"Host": "example.org:8000"}).status_code == 403


def basic(name, password):
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def test_a_token_is_asked_for_as_a_password():
    page = client((TokenAsked, {"token": "geheim:ß"}))
    refused = page.get("/")
    assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic")
    for given in (basic("ann", "geheim:ß"), basic("", "geheim:ß")):
        assert page.get("/", headers={"Authorization": given}).status_code == 200
    for given in (basic("ann", "wrong"), basic("geheim:ß", ""), "Basic %%%", "Bearer geheim", "geheim:ß".encode()):
        assert page.get("/", headers={"Authorization": given}).status_code == 401


@pytest.mark.parametrize(
    "header, right",
    [
        ("Bearer secret", True),
        ("Bearer  secret", False),
        ("bearer secret", False),
        ("secret", False),
        ("", False),
        (basic("x", "secret"), True),
        (basic("secret", "x"), False),
        ("Basic secret", False),
    ],
)
def test_what_counts_as_the_token(header, right):
    assert token_given(header, "secret") is right
